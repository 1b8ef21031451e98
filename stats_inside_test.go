package gateway

import (
	"strconv"
	"testing"
	"time"
)

// Counting takes no lock, also for the routes beyond the bound.
func TestStatsTakeNoLock(t *testing.T) {
	var s Stats
	now := time.Now()
	for n := range maxStats + 1 {
		s.record(strconv.Itoa(n), OutcomeOK, now, time.Millisecond)
	}
	s.mu.Lock() // a second one would wait for ever
	s.record("0", OutcomeOK, now, time.Millisecond)
	s.record("one more", OutcomeOK, now, time.Millisecond)
	s.mu.Unlock()
	all := s.Routes()
	if len(all) != maxStats+1 || all[0].Route != statsOthers || all[0].Requests != 2 || all[1].Requests != 2 {
		t.Errorf("%d routes: %+v, %+v", len(all), all[0], all[1])
	}
}
