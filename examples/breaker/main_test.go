package main

import (
	"testing"
	"time"
)

// With a circuit, callers do not wait during an outage. Without one, they wait for the timeout.
func TestOutage(t *testing.T) {
	const unit = 300 * time.Millisecond
	rows := play(unit, true)
	guarded := outage(rows)
	bare := outage(play(unit, false))
	if bare < unit/4 || guarded >= bare/2 {
		t.Errorf("p99 is %v with a circuit and %v without", guarded, bare)
	}
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
