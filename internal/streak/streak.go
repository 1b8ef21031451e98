// Package streak counts consecutive failures. A success can be taken back later, because a response that
// began well may still be cut off.
package streak

// kept is the number of latest successes that can be taken back. Older ones cannot.
const kept = 256

// Streak counts consecutive failures. The zero Streak has seen none. It is not safe for concurrent use. It
// takes 1.3 KiB.
type Streak struct {
	failures  uint32 // all failures; may wrap around, since only differences are used
	start     uint32 // failures before the last success that was not taken back
	successes uint64 // all successes, including those taken back

	// The latest successes, each at its number modulo kept. The first one has number 1.
	before [kept]uint32 // failures before it
	cut    [kept]bool   // it was taken back

	older uint32 // failures before the last success that is older than the kept ones and was not taken back
}

// Success is a success that may be taken back.
type Success uint64

// Len returns the number of failures since the last success that was not taken back.
func (s *Streak) Len() int { return int(s.failures - s.start) }

// Fail counts a failure.
func (s *Streak) Fail() { s.failures++ }

// Succeed counts a success, which ends the streak.
func (s *Streak) Succeed() Success {
	s.successes++
	i := s.successes % kept
	if s.successes > kept && !s.cut[i] {
		s.older = s.before[i]
	}
	s.before[i], s.cut[i] = s.failures, false
	s.start = s.failures
	return Success(s.successes)
}

// TakeBack changes the streak to what it would be without that success. It does not count a failure instead
// of it: call Fail for that.
//
// For example, after fail, fail, ok, fail, the ok is taken back: three failures in a row. But after ok, fail,
// ok, fail, when the first ok is taken back, it is still one failure, because the second ok stands. When that
// is taken back too, it is two.
func (s *Streak) TakeBack(ok Success) {
	if s.successes-uint64(ok) >= kept {
		return
	}
	s.cut[ok%kept] = true
	s.start = s.older
	for n := s.successes; n > 0 && s.successes-n < kept; n-- {
		if !s.cut[n%kept] {
			s.start = s.before[n%kept]
			return
		}
	}
}
