package streak_test

import (
	"math/rand/v2"
	"testing"

	"github.com/seed-96248d0c/gateway/internal/streak"
)

// TestStreak compares a streak with the list of all results, over random ones. A success that is taken back is
// one of the latest 256.
func TestStreak(t *testing.T) {
	type result struct {
		success, cut bool
		mark         streak.Success
		number       int // of a success
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		var s streak.Streak
		var all []*result
		successes := 0
		mostly := random.IntN(10) // of ten results, so many succeed
		for i := range 1000 {
			switch n := random.IntN(12); {
			case n >= 10 && len(all) > 0: // a success is cut off, if it is one and is not too old
				r := all[random.IntN(len(all))]
				if !r.success || r.cut || successes-r.number > 255 {
					continue
				}
				r.cut = true
				s.TakeBack(r.mark)
				s.Fail()
				all = append(all, &result{})
			case n < mostly:
				successes++
				all = append(all, &result{success: true, mark: s.Succeed(), number: successes})
			default:
				s.Fail()
				all = append(all, &result{})
			}
			want := 0
			for i := len(all) - 1; i >= 0 && (!all[i].success || all[i].cut); i-- {
				if !all[i].success {
					want++
				}
			}
			if s.Len() != want {
				t.Fatalf("seed %d, result %d: %d failures in a row, want %d", seed, i, s.Len(), want)
			}
		}
	}
}

// TestOldSuccess: a success with 256 later ones stands for good.
func TestOldSuccess(t *testing.T) {
	for later, want := range map[int]int{0: 2, 254: 2, 255: 2, 256: 1, 1000: 1} {
		var s streak.Streak
		s.Fail()
		first := s.Succeed()
		var others []streak.Success
		for range later {
			others = append(others, s.Succeed())
		}
		s.Fail()
		s.TakeBack(first)
		for _, ok := range others {
			s.TakeBack(ok)
		}
		if s.Len() != want {
			t.Errorf("%d later: %d in a row, want %d", later, s.Len(), want)
		}
	}
}
