package telemetry

import (
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// statusLabel is the simplest label.
type statusLabel struct{ status int }

func (l statusLabel) AttributeSet() attribute.Set {
	return attribute.NewSet(attribute.Int("status", l.status))
}

// A client that makes up labels must not make each of them cost a copy of all.
func TestLabelCacheUnderAFlood(t *testing.T) {
	var c LabelCache[statusLabel]
	copies, before := 0, c.known.Load()
	for i := range 3 * MaxLabels {
		if len(c.Options(statusLabel{i})) != 1 {
			t.Fatal("no options")
		}
		if now := c.known.Load(); now != before {
			copies, before = copies+1, now
			if len(*now) > MaxLabels {
				t.Fatalf("%d labels", len(*now))
			}
		}
		if len(*before)+len(c.fresh) > MaxLabels {
			t.Fatalf("%d labels", len(*before)+len(c.fresh))
		}
	}
	if copies > 100 {
		t.Errorf("%d copies for %d labels", copies, 3*MaxLabels)
	}
	if allocs := testing.AllocsPerRun(10, func() { c.Options(statusLabel{1}) }); allocs != 0 {
		t.Errorf("%v allocations for a known label", allocs)
	}
}

// Each label must get its own attributes, also while others are added.
func TestLabelCacheAtOnce(t *testing.T) {
	var c LabelCache[statusLabel]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				l := statusLabel{i % 60}
				got := metric.NewRecordConfig(c.Options(l)).Attributes()
				if want := l.AttributeSet(); !got.Equals(&want) {
					t.Errorf("label %v has %v", l, got)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkLabelCache(b *testing.B) {
	var c LabelCache[statusLabel]
	for i := range 100 {
		c.Options(statusLabel{i})
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Options(statusLabel{7})
	}
}
