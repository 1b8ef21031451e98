package idletimer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway/internal/idletimer"
)

func TestTimer(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name     string
		excepted time.Duration // for so long, the wait is not the sender's fault
		use      func(*idletimer.Timer)
		closed   time.Duration // when close was called; 0 for never
	}{
		{"a long read", 0, func(i *idletimer.Timer) { i.BeginRead(); time.Sleep(20 * s) }, 10 * s},
		{"a read that ends in time", 0, func(i *idletimer.Timer) { i.BeginRead(); time.Sleep(9 * s); i.EndRead(); time.Sleep(20 * s) }, 0},
		{"the time between reads does not count", 0, func(i *idletimer.Timer) {
			for range 3 {
				i.BeginRead()
				time.Sleep(9 * s)
				i.EndRead()
				time.Sleep(60 * s)
			}
		}, 0},
		{"the second read", 0, func(i *idletimer.Timer) {
			i.BeginRead()
			time.Sleep(9 * s)
			i.EndRead()
			i.BeginRead()
			time.Sleep(20 * s)
		}, 19 * s},
		{"sent in between", 0, func(i *idletimer.Timer) { i.BeginRead(); time.Sleep(5 * s); i.Sent(); time.Sleep(20 * s) }, 15 * s},
		{"excepted", 25 * s, func(i *idletimer.Timer) { i.BeginRead(); time.Sleep(60 * s) }, 30 * s},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var closed time.Duration
				i := idletimer.New(10*s, func() error { closed = time.Since(start); return nil }, func() bool { return time.Since(start) < tt.excepted })
				tt.use(i)
				i.EndRead()
				synctest.Wait()
				if closed != tt.closed {
					t.Errorf("closed after %v, want %v", closed, tt.closed)
				}
				if after, expired := i.Expired(); expired != (tt.closed > 0) || after != 10*s {
					t.Errorf("expired %v after %v", expired, after)
				}
			})
		})
	}
}

// TestNone: without a limit, the methods may be called.
func TestNone(t *testing.T) {
	i := idletimer.New(0, nil, nil)
	i.BeginRead()
	i.Sent()
	i.EndRead()
	if _, expired := i.Expired(); expired || i != nil {
		t.Error("there is a timer")
	}
}
