package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// With a circuit, callers are refused during an outage, and served after it. Without one, they wait for the timeout. What
// this takes is measured on a virtual clock, below: here it depends on what else the machine does.
func TestOutage(t *testing.T) {
	const unit = 300 * time.Millisecond
	guarded, bare := play(unit, true, overTheWire), play(unit, false, overTheWire)
	if p := outage(bare); p < unit/4 {
		t.Errorf("p99 is %v without a circuit", p)
	}
	refused, served := 0, 0
	for i, r := range guarded {
		if i > sickFrom && i < sickBefore {
			refused += r.refused
		}
		if i > sickBefore {
			served += r.ok
		}
		if bare[i].refused > 0 || i > sickFrom && i < sickBefore-1 && bare[i].ok > callers/2 {
			t.Errorf("row %d without a circuit: %+v", i+1, bare[i])
		}
	}
	if refused < callers*(sickBefore-sickFrom-1)/2 || served == 0 {
		t.Errorf("with a circuit, %d are refused during the outage, and %d served after it", refused, served)
	}
}

// inProcess connects caller, gateway and backend without sockets, so that all of the time is the policy's.
func inProcess(opts *gateway.UpstreamOptions, backend http.Handler) (ask func() int, stop func()) {
	opts.Transport = gateway.HandlerTransport(backend)
	h := gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets("http://backend"), opts), nil)
	return func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w.Code
	}, func() {}
}

// The same on a virtual clock, whatever else the machine does: p99 is below 5 ms with a circuit, and the timeout without.
func TestOutageOnAVirtualClock(t *testing.T) {
	const unit = time.Second
	synctest.Test(t, func(t *testing.T) {
		rows := play(unit, true, inProcess)
		if p := outage(rows); p >= 5*time.Millisecond {
			t.Errorf("p99 is %v with a circuit", p)
		}
		checkTimeline(t, rows)
		if p := outage(play(unit, false, inProcess)); p != unit/4 {
			t.Errorf("p99 is %v without a circuit", p)
		}
	})
}

// checkTimeline checks that the circuit refuses during the outage, and only then.
func checkTimeline(t *testing.T, rows []row) {
	t.Helper()
	if last := rows[len(rows)-1]; last.state != "closed" || last.ok != callers {
		t.Errorf("in the end: %+v", last)
	}
	for i, r := range rows {
		if i == sickFrom || i == sickBefore {
			continue // it opens and closes within these
		}
		if sick := i > sickFrom && i < sickBefore; sick != (r.refused > callers/2) {
			t.Errorf("row %d: %d refused", i+1, r.refused)
		}
	}
}
