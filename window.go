package gateway

import (
	"math"
	"math/bits"
	"time"
)

// windowStart returns the start of the window that contains now. Windows are aligned to the Unix epoch.
func windowStart(now int64, length time.Duration) int64 {
	into := now % int64(length)
	if into < 0 {
		into += int64(length)
	}
	return now - into
}

// after returns the time from now until start + n*length, at most math.MaxInt64.
func after(start, now, n int64, length time.Duration) time.Duration {
	hi, lo := bits.Mul64(uint64(n), uint64(length))
	if past := now - start; past > 0 {
		var borrow uint64
		lo, borrow = bits.Sub64(lo, uint64(past), 0)
		hi -= borrow
	} else {
		var carry uint64
		lo, carry = bits.Add64(lo, uint64(-past), 0)
		hi += carry
	}
	if hi != 0 || lo > math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(lo)
}

// inWindow reports whether now is in the window that begins at start, or earlier.
func inWindow(start, now int64, length time.Duration) bool {
	return now < start || uint64(now)-uint64(start) < uint64(length)
}

// addUnits returns a+b, or the largest int.
func addUnits(a, b int) int {
	if a > math.MaxInt-b {
		return math.MaxInt
	}
	return a + b
}

// fixedWindow is the algorithm of the fixed window.
type fixedWindow struct {
	limit  int
	length time.Duration
}

// windowCount is the state of one key: the units that it has taken in the current window.
type windowCount struct {
	start int64 // of the window
	used  int   // above the limit, the key is in debt
}

// roll moves s to the window that contains now. If the clock is set back, the current window continues.
func (w *fixedWindow) roll(s *windowCount, now int64) {
	if inWindow(s.start, now, w.length) {
		return // the usual case, without a division
	}
	start := windowStart(now, w.length)
	if s.used <= w.limit {
		s.used = 0
	} else { // each window that has passed pays off limit units of the debt
		passed := (uint64(start) - uint64(s.start)) / uint64(w.length)
		if hi, paid := bits.Mul64(passed, uint64(w.limit)); hi != 0 || paid >= uint64(s.used) {
			s.used = 0
		} else {
			s.used -= int(paid)
		}
	}
	s.start = start
}

func (w *fixedWindow) Begin(s *windowCount, now int64) { s.start = windowStart(now, w.length) }

func (w *fixedWindow) take(s *windowCount, now int64, n int) (t takeResult, ok bool) {
	w.roll(s, now)
	t.ref = s.start
	if n <= w.limit-s.used {
		ok = true
		s.used += n
	} else if n <= w.limit {
		// k windows from now, used - k*limit units are still used. The request waits for the first k at which
		// that is at most limit - n.
		t.pause = after(s.start, now, windows(s.used-(w.limit-n), w.limit), w.length)
	}
	t.remaining = max(0, w.limit-s.used)
	if s.used > 0 {
		t.resetAfter = after(s.start, now, windows(s.used, w.limit), w.length)
	}
	return t, ok
}

// windows returns how many windows used units fill, rounded up. Both are positive.
func windows(used, limit int) int64 {
	if used <= limit {
		return 1 // without a division
	}
	return int64((used-1)/limit) + 1
}

func (w *fixedWindow) give(s *windowCount, now int64, n int, ref int64) {
	w.roll(s, now)
	if s.start == ref {
		s.used = max(0, s.used-n)
	}
}

func (w *fixedWindow) owe(s *windowCount, now int64, n int) {
	w.roll(s, now)
	s.used = addUnits(s.used, n)
}

func (w *fixedWindow) AtRest(s *windowCount, now int64) bool {
	w.roll(s, now)
	return s.used == 0
}

func (w *fixedWindow) spent(s *windowCount, now int64) float64 {
	w.roll(s, now)
	return float64(s.used) / float64(w.limit)
}

// slidingWindow is the algorithm of the sliding window. It calculates with 128-bit integers, so its results
// are exact.
type slidingWindow struct {
	limit  int
	length time.Duration
}

// slidingCount is the state of one key: the units of the current window and of the previous one.
type slidingCount struct {
	start  int64 // of the current window
	before int   // units of the previous window, at most the limit
	used   int   // units of the current window; those above the limit are a debt, and count in the next one
}

// roll moves s to the window that contains now. If the clock is set back, the current window continues.
func (w *slidingWindow) roll(s *slidingCount, now int64) {
	if inWindow(s.start, now, w.length) {
		return
	}
	start := windowStart(now, w.length)
	w.pass(s, (uint64(start)-uint64(s.start))/uint64(w.length))
	s.start = start
}

// pass moves s n windows on. For example, with a limit of 100, used is 250 now. After one window, before is
// 100 and used 150; after two, before is 100 and used 50.
func (w *slidingWindow) pass(s *slidingCount, n uint64) {
	// While used is at least twice the limit, each window takes limit from it and is full. A division does
	// these windows in one step.
	if full := uint64(s.used / w.limit); n > 1 && full > 1 {
		skip := min(n-1, full-1)
		s.used -= int(skip) * w.limit
		n -= skip // at least one is left, which sets before
	}
	for ; n > 0 && (s.before > 0 || s.used > 0); n-- {
		s.before = min(s.used, w.limit)
		s.used -= s.before
	}
}

// weighsAtMost reports whether n units of the previous window count for at most room units, if left
// nanoseconds of the current window are still to come.
func (w *slidingWindow) weighsAtMost(n int, left int64, room int) bool {
	nHi, nLo := bits.Mul64(uint64(n), uint64(left))
	rHi, rLo := bits.Mul64(uint64(room), uint64(w.length))
	return nHi < rHi || nHi == rHi && nLo <= rLo
}

// fits returns the earliest time in the current window at which n more units fit, counted from the window's
// start. ok is false if they do not fit in this window.
func (w *slidingWindow) fits(s *slidingCount, n int) (into int64, ok bool) {
	room := w.limit - s.used - n
	switch {
	case s.used > w.limit || room < 0:
		return 0, false
	case room >= s.before:
		return 0, true
	}
	hi, lo := bits.Mul64(uint64(room), uint64(w.length))
	left, _ := bits.Div64(hi, lo, uint64(s.before)) // less than length, because room < before
	return int64(w.length) - int64(left), left > 0
}

func (w *slidingWindow) Begin(s *slidingCount, now int64) { s.start = windowStart(now, w.length) }

func (w *slidingWindow) take(s *slidingCount, now int64, n int) (t takeResult, ok bool) {
	w.roll(s, now)
	left := int64(w.length) - max(0, now-s.start) // now is before s.start if the clock was set back
	t.ref = s.start
	if n <= w.limit && s.used <= w.limit-n && w.weighsAtMost(s.before, left, w.limit-s.used-n) {
		ok = true
		s.used += n
	} else if n <= w.limit {
		t.pause = w.retryAfter(*s, now, n)
	}
	if s.used < w.limit {
		t.remaining = max(0, w.limit-s.used-w.weight(s.before, left))
	}
	switch {
	case s.used > 0: // the windows that used fills, and one more, in which the last of them still weighs
		t.resetAfter = after(s.start, now, windows(s.used, w.limit)+1, w.length)
	case s.before > 0:
		t.resetAfter = after(s.start, now, 1, w.length)
	}
	return t, ok
}

// weight returns what n units of the previous window count for, rounded up, if left nanoseconds of the
// current window are still to come.
func (w *slidingWindow) weight(n int, left int64) int {
	if n == 0 {
		return 0 // without a division
	}
	hi, lo := bits.Mul64(uint64(n), uint64(left))
	q, r := bits.Div64(hi, lo, uint64(w.length)) // q <= n, because left <= length
	if r > 0 {
		q++
	}
	return int(q)
}

// retryAfter returns the time after which n units fit that do not fit now.
func (w *slidingWindow) retryAfter(s slidingCount, now int64, n int) time.Duration {
	passed := int64(0)
	if full := int64(s.used / w.limit); full > 1 {
		passed = full - 1
		w.pass(&s, uint64(passed))
	}
	for {
		if into, ok := w.fits(&s, n); ok {
			return after(s.start+into, now, passed, w.length)
		}
		w.pass(&s, 1)
		passed++
	}
}

func (w *slidingWindow) give(s *slidingCount, now int64, n int, ref int64) {
	w.roll(s, now)
	switch {
	case s.start == ref:
		s.used = max(0, s.used-n)
	case s.start-ref == int64(w.length):
		s.before = max(0, s.before-n)
	}
}

func (w *slidingWindow) owe(s *slidingCount, now int64, n int) {
	w.roll(s, now)
	s.used = addUnits(s.used, n)
}

func (w *slidingWindow) AtRest(s *slidingCount, now int64) bool {
	w.roll(s, now)
	return s.used == 0 && s.before == 0
}

func (w *slidingWindow) spent(s *slidingCount, now int64) float64 {
	w.roll(s, now)
	left := float64(int64(w.length)-max(0, now-s.start)) / float64(w.length)
	return (float64(s.used) + float64(s.before)*left) / float64(w.limit)
}
