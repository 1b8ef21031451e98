package telemetry

import (
	"maps"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Labels is a struct of the values that a histogram is split by.
type Labels interface {
	comparable
	// AttributeSet builds the attributes of these labels. It is called about once for each different value.
	AttributeSet() attribute.Set
}

// LabelCache holds the attribute set of each label that was used, so that requests do not build them. It
// holds at most MaxLabels of them. The zero value is an empty cache. It is safe for concurrent use. A
// lookup of a cached label takes no lock and allocates nothing.
type LabelCache[L Labels] struct {
	known atomic.Pointer[map[L][]metric.RecordOption] // replaced as a whole, never changed

	mu     sync.Mutex
	fresh  map[L][]metric.RecordOption // labels that are not yet in known
	missed int                         // lookups that known could not answer since it was replaced
}

// MaxLabels is the most labels that a LabelCache holds: about 3 MB, at 700 bytes for a label. A full cache is
// emptied.
const MaxLabels = 4096

// Options returns the options to record a value with the attributes of l.
//
// The lock-free map is copied when it changes, which would be expensive for each new label. So new labels are
// collected in fresh, and are merged after as many misses as there are labels. For example, with 100 known
// labels and one new, the merge happens at the 101st miss.
func (c *LabelCache[L]) Options(l L) []metric.RecordOption {
	if known := c.known.Load(); known != nil {
		if options, ok := (*known)[l]; ok {
			return options
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var known map[L][]metric.RecordOption
	if p := c.known.Load(); p != nil {
		known = *p
	}
	options, ok := known[l]
	if !ok {
		options, ok = c.fresh[l]
	}
	if !ok {
		options = []metric.RecordOption{metric.WithAttributeSet(l.AttributeSet())}
		if c.fresh == nil {
			c.fresh = make(map[L][]metric.RecordOption)
		}
		c.fresh[l] = options
	}
	all := len(known) + len(c.fresh)
	if c.missed++; c.missed < all && all < MaxLabels {
		return options
	}
	grown := make(map[L][]metric.RecordOption, all)
	if all <= MaxLabels {
		maps.Copy(grown, known)
	}
	maps.Copy(grown, c.fresh)
	c.known.Store(&grown)
	c.fresh, c.missed = nil, 0
	return options
}
