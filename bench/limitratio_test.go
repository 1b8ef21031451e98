package bench

import (
	"flag"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var ratioRounds = flag.Int("ratios", 0, "rounds of TestLimitTakeRatios; 0 skips it")

// TestLimitTakeRatios compares decisions about keys that are present. In each round, every limiter has one turn of
// about a millisecond; other work on the machine therefore disturbs all of them alike, and most turns not at all.
// It prints the shortest time of each, in ns, and the ratio of gateway's to the fastest peer's.
func TestLimitTakeRatios(t *testing.T) {
	if *ratioRounds == 0 {
		t.Skip("measures: run with -ratios 200")
	}
	for _, n := range []int{1, 10_000, 1_000_000} {
		for _, goroutines := range []int{1, runtime.GOMAXPROCS(0)} {
			t.Run(strconv.Itoa(n)+" keys, "+strconv.Itoa(goroutines)+" goroutines", func(t *testing.T) {
				takeRatios(t, n, goroutines)
			})
		}
	}
}

func takeRatios(t *testing.T, n, goroutines int) {
	turn := 10_000 // takes
	if n == 1 {
		turn = 50_000 // so that the goroutines run at the same time
	}
	asked := make([]string, n)
	for i := range asked {
		asked[i] = strconv.Itoa(1_000_000_000_000_000 + i) // 16 bytes
	}
	var takes []func(key string) bool
	for _, peer := range takers {
		take := peer.make(t)
		for _, key := range asked {
			take(strings.Clone(key))
		}
		takes = append(takes, take)
	}
	runtime.GC()
	best := slices.Repeat([]float64{math.MaxFloat64}, len(takers))
	all := make([][]float64, len(takers))
	for round := range *ratioRounds {
		for k := range takes {
			i := (k + round) % len(takes)
			var wg sync.WaitGroup
			start := time.Now()
			for g := range goroutines {
				wg.Go(func() {
					at := round*turn*7919 + g*7919*13
					for range turn / goroutines {
						takes[i](asked[at%n])
						at += 7919
					}
				})
			}
			wg.Wait()
			ns := float64(time.Since(start)) / float64(turn)
			best[i] = min(best[i], ns)
			all[i] = append(all[i], ns)
		}
	}
	fastest := 0.0
	for i, peer := range takers {
		slices.Sort(all[i])
		t.Logf("%-16s %6.1f, median %6.1f", peer.name, best[i], all[i][len(all[i])/2])
		if !strings.HasPrefix(peer.name, "gateway") && peer.name != "rate-in-a-map" && (fastest == 0 || best[i] < fastest) {
			fastest = best[i]
		}
	}
	t.Logf("token bucket / fastest peer: %.2f", best[0]/fastest)
}
