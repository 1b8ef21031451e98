package gateway

import "testing"

// Whoever can make up labels must not make each of them cost a copy of all.
func TestLabelCacheUnderAFlood(t *testing.T) {
	var c labelCache[label]
	copies, before := 0, c.known.Load()
	for i := range 3 * maxLabels {
		if len(c.get(label{status: i})) != 1 {
			t.Fatal("no options")
		}
		if now := c.known.Load(); now != before {
			copies, before = copies+1, now
			if len(*now) > maxLabels {
				t.Fatalf("%d labels", len(*now))
			}
		}
		if len(*before)+len(c.fresh) > maxLabels {
			t.Fatalf("%d labels", len(*before)+len(c.fresh))
		}
	}
	if copies > 100 {
		t.Errorf("%d copies for %d labels", copies, 3*maxLabels)
	}
	if allocs := testing.AllocsPerRun(10, func() { c.get(label{status: 1}) }); allocs != 0 {
		t.Errorf("%v allocations for a label that was seen", allocs)
	}
}
