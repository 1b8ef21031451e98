// Package streak counts failures in a row, where a success can be taken back later: a response that began
// well may still be cut off.
package streak

// kept is how many successes, the latest ones, can be taken back. An older one counts as one that stands.
const kept = 256

// Streak counts consecutive failures. The zero Streak has seen none. It is not safe for concurrent use. It
// takes 1.3 KiB.
type Streak struct {
	failures  uint32 // all of them; it may wrap, since only differences count
	start     uint32 // failures before the last success that stands
	successes uint64 // all of them, also those taken back

	// The latest successes, each at its number modulo kept. The first one has number 1.
	before [kept]uint32 // failures before it
	cut    [kept]bool   // it was taken back

	older uint32 // failures before the last success that stands and is not among the latest
}

// Success is a success that may be taken back.
type Success uint64

// Len returns the number of failures since the last success that stands.
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

// TakeBack makes the streak what it would be without that success. It does not count a failure in its place;
// call Fail for that.
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
