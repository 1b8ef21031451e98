package gatewayredis

import (
	"math"
	"math/bits"
	"strconv"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// window is the fixed window and, if sliding is true, the sliding window. Its arithmetic is that of package gateway's.
type window struct {
	limit   int64
	length  int64 // µs
	sliding bool
}

// maxWindow is the longest window, so that its end has an exact double.
const maxWindow = 100 * 365 * 24 * time.Hour

func newWindow(caller string, limit int, length time.Duration, sliding bool) *window {
	switch {
	case limit < 1 || int64(limit) > maxLimit:
		panic("gatewayredis: " + caller + ": limit must be between 1 and 1<<52")
	case length <= 0 || length > maxWindow || length%time.Microsecond != 0:
		panic("gatewayredis: " + caller + ": window must be positive, in whole microseconds, and at most 100 years")
	}
	return &window{limit: int64(limit), length: length.Microseconds(), sliding: sliding}
}

func (w *window) script() *script {
	if w.sliding {
		return slidingScript
	}
	return fixedScript
}

func (w *window) parameters() (limit, rate string) {
	return strconv.FormatInt(w.limit, 10), strconv.FormatInt(w.length, 10)
}

func (w *window) reading(f [5]float64) reading {
	return reading{used: int64(f[0]), now: int64(f[1]), start: int64(f[3]), before: int64(f[4])}
}

func (w *window) spend(r reading, n int64) reading {
	r.used = max(0, r.used+n)
	return r
}

func (w *window) spent(r reading) int64 { return r.used }

func (w *window) keeps(_ reading, units int64) (kept int64, giveBack bool) { return units, true }

func (w *window) leaseTime(r reading) time.Duration {
	return min(leaseTime, time.Duration(r.start+w.length-r.now)*time.Microsecond)
}

func (w *window) age(r reading, now int64) (reading, bool) {
	r.now = max(r.now, now)
	return r, r.now < r.start+w.length
}

func (w *window) local(of gateways) *local {
	l := &local{of: of, share: of.part(int(w.limit)), limit: int(w.limit)}
	length := time.Duration(w.length) * time.Microsecond
	if w.sliding {
		l.MemoryLimiter = gateway.NewSlidingWindow(l.share, length, nil)
	} else {
		l.MemoryLimiter = gateway.NewFixedWindow(l.share, length, nil)
	}
	return l
}

func (w *window) decide(r reading, n int64, ok bool) gateway.Decision {
	d := gateway.Decision{
		OK: ok, Limit: int(w.limit), Window: time.Duration(w.length) * time.Microsecond, Ref: r.start,
	}
	if ok {
		r.used += n
	}
	if r.used < w.limit {
		d.Remaining = int(max(0, w.limit-r.used-w.weight(r)))
	}
	if !ok && n <= w.limit {
		d.RetryAfter = w.retryAfter(r, n)
	}
	switch {
	case r.used > 0 && w.sliding: // the last window with a count, and the one after it
		d.ResetAfter = w.after(r, ceilDiv(r.used, w.limit)+1)
	case r.used > 0:
		d.ResetAfter = w.after(r, ceilDiv(r.used, w.limit))
	case r.before > 0:
		d.ResetAfter = w.after(r, 1)
	}
	return d
}

// after returns the time until n windows after the start of r's.
func (w *window) after(r reading, n int64) time.Duration {
	hi, lo := bits.Mul64(uint64(n), uint64(w.length))
	if hi != 0 || lo > math.MaxInt64/1000 {
		return math.MaxInt64
	}
	us := max(0, int64(lo)-(r.now-r.start))
	if us > math.MaxInt64/1000 {
		return math.MaxInt64
	}
	return time.Duration(us) * time.Microsecond
}

// ceilDiv returns a/b, rounded up. Both are positive.
func ceilDiv(a, b int64) int64 { return (a-1)/b + 1 }

// weight returns what the units of the window before count for, rounded up.
func (w *window) weight(r reading) int64 {
	left := w.length - max(0, r.now-r.start)
	if r.before <= 0 || left <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(r.before), uint64(left))
	q, rest := bits.Div64(hi, lo, uint64(w.length)) // left <= length, so that q <= before
	if rest > 0 {
		q++
	}
	return int64(q)
}

// retryAfter returns how long n units have to wait that do not fit now.
func (w *window) retryAfter(r reading, n int64) time.Duration {
	if !w.sliding { // in window k from now, used - k*limit is left of the debt
		return w.after(r, ceilDiv(r.used-(w.limit-n), w.limit))
	}
	windows := int64(0)
	if full := r.used / w.limit; full > 1 {
		windows = full - 1
		r.used -= windows * w.limit
		r.before = w.limit
	}
	for {
		if into, ok := w.fits(r, n); ok {
			at := w.after(r, windows)
			if windows == 0 {
				at = -time.Duration(r.now-r.start) * time.Microsecond
			}
			return addTime(at, time.Duration(into)*time.Microsecond)
		}
		r.before = min(r.used, w.limit)
		r.used -= r.before
		windows++
	}
}

func addTime(a, b time.Duration) time.Duration {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return max(a+b, time.Microsecond)
}

// fits returns the earliest time in the window, counted from its start, at which n more units fit.
func (w *window) fits(r reading, n int64) (into int64, ok bool) {
	room := w.limit - r.used - n
	switch {
	case room < 0:
		return 0, false
	case room >= r.before:
		return 0, true
	}
	hi, lo := bits.Mul64(uint64(room), uint64(w.length))
	left, _ := bits.Div64(hi, lo, uint64(r.before)) // room < before, so that it is less than the length
	return w.length - int64(left), left > 0
}
