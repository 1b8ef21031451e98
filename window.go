package gateway

import (
	"math"
	"math/bits"
	"time"
)

// windowStart returns the start of the window that now is in, aligned to the Unix epoch.
func windowStart(now int64, length time.Duration) int64 {
	into := now % int64(length)
	if into < 0 {
		into += int64(length)
	}
	return now - into
}

// after returns start + n*length - now. It is at most math.MaxInt64.
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

// inWindow reports whether now is in the window that begins at start, or before it.
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

// fixedWindow is the fixed window.
type fixedWindow struct {
	limit  int
	length time.Duration
}

// windowCount counts the units that one key has taken in a window. Above the limit, it is in debt.
type windowCount struct {
	start int64
	used  int
}

// roll moves s to the window that now is in. When the clock is set back, the present window goes on.
func (w *fixedWindow) roll(s *windowCount, now int64) {
	if inWindow(s.start, now, w.length) {
		return // without a division
	}
	start := windowStart(now, w.length)
	if s.used <= w.limit {
		s.used = 0
	} else { // each window that has passed has paid for limit units
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
		// In window k from now, used - k*limit is left of the debt.
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

// slidingWindow is the sliding window. It calculates in whole numbers of 128 bits, without an error.
type slidingWindow struct {
	limit  int
	length time.Duration
}

// slidingCount counts the units of the present window and those of the one before, which are at most the limit. What
// is above the limit is a debt, and counts in the next window.
type slidingCount struct {
	start        int64 // of the present window
	before, used int
}

// roll moves s to the window that now is in. When the clock is set back, the present window goes on.
func (w *slidingWindow) roll(s *slidingCount, now int64) {
	if inWindow(s.start, now, w.length) {
		return
	}
	start := windowStart(now, w.length)
	w.pass(s, (uint64(start)-uint64(s.start))/uint64(w.length))
	s.start = start
}

// pass lets n windows pass.
func (w *slidingWindow) pass(s *slidingCount, n uint64) {
	// While the debt is larger than the limit, a window is full and takes limit from it.
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

// weighs reports whether n units of the window before count for at most room, with left of the length to go.
func (w *slidingWindow) weighs(n int, left int64, room int) bool {
	nHi, nLo := bits.Mul64(uint64(n), uint64(left))
	rHi, rLo := bits.Mul64(uint64(room), uint64(w.length))
	return nHi < rHi || nHi == rHi && nLo <= rLo
}

// fits returns the earliest time in the window, counted from its start, at which n more units fit.
func (w *slidingWindow) fits(s *slidingCount, n int) (into int64, ok bool) {
	room := w.limit - s.used - n
	switch {
	case s.used > w.limit || room < 0:
		return 0, false
	case room >= s.before:
		return 0, true
	}
	hi, lo := bits.Mul64(uint64(room), uint64(w.length))
	left, _ := bits.Div64(hi, lo, uint64(s.before)) // room < before, so that it is less than the length
	return int64(w.length) - int64(left), left > 0
}

func (w *slidingWindow) Begin(s *slidingCount, now int64) { s.start = windowStart(now, w.length) }

func (w *slidingWindow) take(s *slidingCount, now int64, n int) (t takeResult, ok bool) {
	w.roll(s, now)
	left := int64(w.length) - max(0, now-s.start) // now is before the window when the clock was set back
	t.ref = s.start
	if n <= w.limit && s.used <= w.limit-n && w.weighs(s.before, left, w.limit-s.used-n) {
		ok = true
		s.used += n
	} else if n <= w.limit {
		t.pause = w.retryAfter(*s, now, n)
	}
	if s.used < w.limit {
		t.remaining = max(0, w.limit-s.used-w.weight(s.before, left))
	}
	switch {
	case s.used > 0: // the last window with a count, and the one after it
		t.resetAfter = after(s.start, now, windows(s.used, w.limit)+1, w.length)
	case s.before > 0:
		t.resetAfter = after(s.start, now, 1, w.length)
	}
	return t, ok
}

// weight returns what n units of the window before count for, rounded up.
func (w *slidingWindow) weight(n int, left int64) int {
	if n == 0 {
		return 0 // without a division
	}
	hi, lo := bits.Mul64(uint64(n), uint64(left))
	q, r := bits.Div64(hi, lo, uint64(w.length)) // left <= length, so that q <= n
	if r > 0 {
		q++
	}
	return int(q)
}

// retryAfter returns how long n units have to wait that do not fit now.
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
