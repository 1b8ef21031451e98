package retrybudget_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway/internal/retrybudget"
)

func TestBudget(t *testing.T) {
	for _, tt := range []struct {
		name     string
		share    float64
		requests int
		after    time.Duration
		want     int
	}{
		{"a new one", 0.25, 0, 0, 3},
		{"a second later", 0.25, 0, time.Second, 6},
		{"time saves up ten seconds", 0.25, 0, time.Hour, 30},
		{"requests earn", 0.25, 40, 0, 3 + 10},
		{"less than a whole one", 0.25, 3, 0, 3},
		{"requests save up 500", 0.25, 1_000_000, 0, 3 + 500},
		{"no share", 0, 1000, 0, 3},
		{"a negative share", -1, 1000, 0, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := retrybudget.New(tt.share)
				for range tt.requests {
					b.Earn()
				}
				time.Sleep(tt.after)
				n := 0
				for b.Spend() {
					n++
				}
				if n != tt.want {
					t.Errorf("%d retries, want %d", n, tt.want)
				}
			})
		})
	}
}
