package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/url"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-96248d0c/gateway/internal/onetime"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// held is what make leaves on the heap, for each of n things.
func held(n int, make func() any) int {
	heap := func() int {
		runtime.GC()
		runtime.GC() // what the first left to finalizers
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	kept := make()
	after := heap()
	runtime.KeepAlive(kept)
	return (after - before) / n
}

const million = 1_000_000

// filled is l with a million keys of 16 bytes.
func filled(l *MemoryLimiter) *MemoryLimiter {
	key := []byte("1000000000000000")
	for i := range million {
		binary.BigEndian.PutUint64(key, uint64(i))
		_, _ = l.Take(context.Background(), string(key), 1)
	}
	return l
}

// TestMemoryIsAsDocumented holds the bytes that the documents name, with a fifth for the allocator's moods.
func TestMemoryIsAsDocumented(t *testing.T) {
	const n = 10_000
	targets := make([]Target, n)
	for i := range targets {
		targets[i].URL = &url.URL{Scheme: "http", Host: fmt.Sprintf("10.0.%d.%d:8080", i/256, i%256)}
	}
	for _, tt := range []struct {
		name string
		n    int
		make func() any
		want int
	}{
		{"a target of an Upstream", n, func() any { return NewUpstream("u", targets, nil) }, 300},
		{"a target of RoundRobin", n, func() any { b := RoundRobin(); b.Pick(nil, targets); return b }, 30},
		{"a target of LeastPending", n, func() any {
			b := LeastPending().(*leastPending)
			for i := range targets {
				b.load(targets, i)
			}
			return b
		}, 140},
		{"a label", telemetry.MaxLabels, func() any {
			c := new(telemetry.LabelCache[serverLabels])
			for i := range telemetry.MaxLabels {
				c.Options(serverLabels{method: "GET", route: fmt.Sprintf("/route/%d", i), scheme: "http", version: "1.1", status: 200})
			}
			return c
		}, 700},
		{"a DPoP proof", 100_000, func() any {
			s := onetime.New(100_000, time.Hour)
			for i := range 99_000 {
				s.Add(proofID([32]byte{1}, fmt.Sprint(i)), time.Now())
			}
			return s
		}, 70},
		{"a Circuit after many changes", 100, func() any {
			var all []*Circuit
			for range 100 {
				c := NewCircuit("c", nil)
				for range 2 * keptChanges {
					c.Trip(1)
					c.State()
				}
				all = append(all, c)
			}
			return all
		}, 6_000},
		{"a key of 16 bytes in a bucket", million, func() any { return filled(NewTokenBucket(1e-6, 10, nil)) }, 100},
		{"a key of 16 bytes in a sliding window", million, func() any { return filled(NewSlidingWindow(10, 1000*time.Hour, nil)) }, 100},
		{"a limiter without keys", 100, func() any {
			var all []*MemoryLimiter
			for range 100 {
				all = append(all, NewTokenBucket(1, 1, nil))
			}
			return all
		}, 41_000},
	} {
		if got := held(tt.n, tt.make); got > tt.want*6/5 {
			t.Errorf("%s takes %d bytes, documented are %d", tt.name, got, tt.want)
		} else {
			t.Logf("%s takes %d bytes, documented are %d", tt.name, got, tt.want)
		}
	}
}

// TestRecordFitsItsSizeClass holds the record of a request, with its request, in the allocator's class of 896 bytes. The next
// one is of 1,024, and every request pays for it.
func TestRecordFitsItsSizeClass(t *testing.T) {
	const class, header = 896, 8 // the allocator's own word before an object of this size
	if size := unsafe.Sizeof(arrival{}); size > class-header {
		t.Errorf("%d bytes, want at most %d", size, class-header)
	}
}
