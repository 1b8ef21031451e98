package flightcache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errLoad = errors.New("no such key")

// forAnHour is a load function whose values are the keys themselves.
func forAnHour(_ context.Context, key string) (*Entry[string], error) {
	return &Entry[string]{Value: key, Until: time.Now().Add(time.Hour)}, nil
}

func TestHit(t *testing.T) {
	c := New(10, 1000, forAnHour)
	first, hit, err := c.Load(t.Context(), "a")
	if err != nil || hit || first.Value != "a" {
		t.Fatalf("first load: %+v, hit %v, error %v", first, hit, err)
	}
	second, hit, err := c.Load(t.Context(), "a")
	if err != nil || !hit || second != first {
		t.Errorf("second load: same entry %v, hit %v, error %v", second == first, hit, err)
	}
	c.Forget(first)
	third, hit, _ := c.Load(t.Context(), "a")
	if hit || third == first {
		t.Errorf("after Forget: same entry %v, hit %v", third == first, hit)
	}
	c.Forget(first) // another entry is in its place
	if e, hit, _ := c.Load(t.Context(), "a"); !hit || e != third {
		t.Error("Forget removed the entry that replaced its own")
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, ttl := range map[string]time.Duration{"remembered": time.Minute, "over at once": 0, "over before": -time.Minute} {
			loads := 0
			c := New(10, 1000, func(context.Context, string) (*Entry[int], error) {
				loads++
				return &Entry[int]{Value: loads, Until: time.Now().Add(ttl)}, nil
			})
			load := func(want int) {
				t.Helper()
				before := loads
				if e, hit, err := c.Load(t.Context(), "a"); err != nil || e.Value != want || hit != (loads == before) {
					t.Errorf("%s: load %d, want %d, hit %v, error %v", name, e.Value, want, hit, err)
				}
			}
			load(1)
			if ttl > 0 {
				time.Sleep(ttl - time.Nanosecond)
				load(1)
				time.Sleep(time.Nanosecond)
			}
			load(2)
		}
	})
}

// TestErrors: an error is returned to the caller and not remembered.
func TestErrors(t *testing.T) {
	loads := 0
	c := New(10, 1000, func(context.Context, string) (*Entry[string], error) {
		loads++
		return nil, errLoad
	})
	for range 3 {
		if e, hit, err := c.Load(t.Context(), "a"); e != nil || hit || err != errLoad {
			t.Errorf("entry %v, hit %v, error %v", e, hit, err)
		}
	}
	if loads != 3 || len(c.shards[0].flights) != 0 {
		t.Errorf("%d loads, %d flights left", loads, len(c.shards[0].flights))
	}
}

// TestOneFlight: callers that ask for one key at the same time share one load, whether its result is
// remembered or not.
func TestOneFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tt := range map[string]struct {
			ttl  time.Duration
			err  error
			want int64 // loads by 100 callers at once and one more
		}{
			"remembered":     {time.Hour, nil, 1},
			"not remembered": {0, nil, 2},
			"an error":       {0, errLoad, 2},
		} {
			var loads atomic.Int64
			c := New(10, 1000, func(context.Context, string) (*Entry[int], error) {
				loads.Add(1)
				time.Sleep(time.Second)
				if tt.err != nil {
					return nil, tt.err
				}
				return &Entry[int]{Until: time.Now().Add(tt.ttl)}, nil
			})
			entries := make([]*Entry[int], 100)
			var wg sync.WaitGroup
			for i := range entries {
				wg.Go(func() {
					var err error
					if entries[i], _, err = c.Load(t.Context(), "a"); err != tt.err {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			wg.Wait()
			for _, e := range entries {
				if e != entries[0] {
					t.Fatalf("%s: callers got different entries", name)
				}
			}
			_, _, _ = c.Load(t.Context(), "a")
			if loads.Load() != tt.want {
				t.Errorf("%s: %d loads, want %d", name, loads.Load(), tt.want)
			}
		}
	})
}

// TestLeaderLeaves: when the caller that loads for all leaves, another one loads, and only those fail whose
// own context has ended.
func TestLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads atomic.Int64
		c := New(10, 1000, func(ctx context.Context, key string) (*Entry[string], error) {
			loads.Add(1)
			select {
			case <-time.After(time.Second):
				return forAnHour(ctx, key)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		leading, leave := context.WithCancel(t.Context())
		impatient, stop := context.WithTimeout(t.Context(), time.Millisecond)
		defer stop()
		var wg sync.WaitGroup
		load := func(who string, ctx context.Context, want error) {
			wg.Go(func() {
				if _, _, err := c.Load(ctx, "a"); !errors.Is(err, want) {
					t.Errorf("%s: %v", who, err)
				}
			})
		}
		load("leader", leading, context.Canceled)
		synctest.Wait()
		for range 10 {
			load("follower", t.Context(), nil)
		}
		load("impatient follower", impatient, context.DeadlineExceeded)
		time.Sleep(2 * time.Millisecond)
		leave()
		wg.Wait()
		if loads.Load() != 2 {
			t.Errorf("%d loads", loads.Load())
		}
	})
}

// TestLoadPanics: the panic reaches the caller that loads, and the others load again.
func TestLoadPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads atomic.Int64
		c := New(10, 1000, func(ctx context.Context, key string) (*Entry[string], error) {
			if loads.Add(1) == 1 {
				time.Sleep(time.Second)
				panic("broken")
			}
			return forAnHour(ctx, key)
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			_, _, _ = c.Load(t.Context(), "a")
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				if e, _, err := c.Load(t.Context(), "a"); err != nil || e.Value != "a" {
					t.Errorf("entry %v, error %v", e, err)
				}
			})
		}
		wg.Wait()
	})
}

// contents adds up what all shards hold, and checks the count of bytes that each keeps.
func contents[V any](t *testing.T, c *Cache[V]) (entries, bytes int) {
	t.Helper()
	for i := range c.shards {
		s, sum := &c.shards[i], 0
		for _, e := range s.entries {
			sum += e.bytes()
		}
		if sum != s.bytes {
			t.Errorf("shard %d holds %d bytes and counts %d", i, sum, s.bytes)
		}
		entries += len(s.entries)
		bytes += sum
	}
	return entries, bytes
}

func TestBounds(t *testing.T) {
	for name, tt := range map[string]struct {
		entries, bytes int // bounds
		size, keys     int
		least, most    int // entries kept
	}{
		"by count":          {100, 1 << 20, 0, 1000, 50, 100},
		"by bytes":          {100, 100 << 10, 10 << 10, 1000, 1, 10},
		"larger than shard": {100, 100, 1 << 20, 1000, 0, 0},
		"one":               {1, 1 << 20, 0, 10, 1, 1},
		"more than enough":  {1 << 20, 1 << 30, 1 << 10, 1000, 1000, 1000},
	} {
		c := New(tt.entries, tt.bytes, func(ctx context.Context, key string) (*Entry[string], error) {
			return &Entry[string]{Value: key, Size: tt.size, Until: time.Now().Add(time.Hour)}, nil
		})
		for i := range tt.keys {
			key := fmt.Sprint("key-", i)
			if e, _, err := c.Load(t.Context(), key); err != nil || e.Value != key {
				t.Fatalf("%s: %s gives %+v, %v", name, key, e, err)
			}
		}
		entries, bytes := contents(t, c)
		if entries < tt.least || entries > tt.most {
			t.Errorf("%s: %d entries are kept, want %d to %d", name, entries, tt.least, tt.most)
		}
		if bytes > tt.bytes {
			t.Errorf("%s: %d bytes are kept, at most %d", name, bytes, tt.bytes)
		}
	}
}

// TestDisplacement: an entry in use outlives those that are not, and an expired one goes first.
func TestDisplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(8, 1<<20, func(_ context.Context, key string) (*Entry[string], error) {
			ttl := time.Hour
			if strings.HasPrefix(key, "short") {
				ttl = time.Minute
			}
			return &Entry[string]{Value: key, Until: time.Now().Add(ttl)}, nil
		})
		load := func(key string) bool {
			_, hit, _ := c.Load(t.Context(), key)
			time.Sleep(time.Second)
			return hit
		}
		load("in use")
		for i := range 50 {
			load(fmt.Sprint("other-", i))
			if !load("in use") {
				t.Fatalf("displaced after %d others", i)
			}
		}
		load("short")
		load("in use")
		time.Sleep(time.Minute)
		load("another")
		if s := &c.shards[0]; s.entries[maphash.String(c.seed, "short")] != nil {
			t.Error("the expired entry was not displaced first")
		}
	})
}

// TestExpiredTakesNoRoom: entries that are not remembered displace nothing.
func TestExpiredTakesNoRoom(t *testing.T) {
	c := New(2, 1000, func(ctx context.Context, key string) (*Entry[string], error) {
		if strings.HasPrefix(key, "over") {
			return &Entry[string]{Value: key, Until: time.Now()}, nil
		}
		return forAnHour(ctx, key)
	})
	for _, key := range []string{"a", "b", "over-1", "over-2", "over-3"} {
		if _, hit, err := c.Load(t.Context(), key); hit || err != nil {
			t.Errorf("%s: hit %v, error %v", key, hit, err)
		}
	}
	for _, key := range []string{"a", "b"} {
		if _, hit, _ := c.Load(t.Context(), key); !hit {
			t.Errorf("%s was displaced", key)
		}
	}
}

// TestWholeKeyIsCompared: two keys with one hash are not mistaken for each other.
func TestWholeKeyIsCompared(t *testing.T) {
	c := New(2, 1000, forAnHour)
	c.shards[0].add(maphash.String(c.seed, "b"), &Entry[string]{Value: "a", Until: time.Now().Add(time.Hour), key: "a"}, time.Now())
	for range 2 {
		if e, _, err := c.Load(t.Context(), "b"); err != nil || e.Value != "b" {
			t.Errorf("%+v, %v", e, err)
		}
	}
	if s := &c.shards[0]; len(s.entries) != 1 || s.bytes != 1 {
		t.Errorf("%d entries of %d bytes", len(s.entries), s.bytes)
	}
}

// TestKeyIsCopied: a key that is a part of a long string does not keep that string in memory.
func TestKeyIsCopied(t *testing.T) {
	const keys, long = 32, 1 << 20
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	c := New(100, 1<<20, func(context.Context, string) (*Entry[int], error) {
		return &Entry[int]{Until: time.Now().Add(time.Hour)}, nil
	})
	before := heap()
	for i := range keys {
		field := strings.Repeat(" ", long) + fmt.Sprint("key-", i)
		if _, _, err := c.Load(t.Context(), field[long:]); err != nil {
			t.Fatal(err)
		}
	}
	if kept := heap() - before; kept > keys*long/4 {
		t.Errorf("%d bytes for %d keys", kept, keys)
	}
	runtime.KeepAlive(c)
}

// TestFailuresInACacheOfTheirOwn is the arrangement that the package comment describes: values and failures
// are both remembered, and a flood of failures displaces no value.
func TestFailuresInACacheOfTheirOwn(t *testing.T) {
	loads := make(map[string]int)
	type result struct {
		value string
		err   error
	}
	failures := New(4, 1000, func(_ context.Context, key string) (*Entry[result], error) {
		loads[key]++
		if strings.HasPrefix(key, "bad") {
			return &Entry[result]{Value: result{err: errLoad}, Until: time.Now().Add(time.Minute)}, nil
		}
		return &Entry[result]{Value: result{value: key}}, nil // remembered by the other cache
	})
	values := New(4, 1000, func(ctx context.Context, key string) (*Entry[string], error) {
		e, _, err := failures.Load(ctx, key)
		if err != nil || e.Value.err != nil {
			return nil, errors.Join(err, e.Value.err)
		}
		return &Entry[string]{Value: e.Value.value, Until: time.Now().Add(time.Minute)}, nil
	})
	ask := func(key string, want error) {
		t.Helper()
		if _, _, err := values.Load(t.Context(), key); !errors.Is(err, want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	ask("good", nil)
	for i := range 100 {
		ask(fmt.Sprint("bad-", i), errLoad)
		ask(fmt.Sprint("bad-", i), errLoad)
	}
	ask("good", nil)
	for key, n := range loads {
		if n != 1 {
			t.Errorf("%s was loaded %d times", key, n)
		}
	}
}

// TestConcurrency has loads, displacement and Forget at once, for the race detector.
func TestConcurrency(t *testing.T) {
	c := New(4, 1000, forAnHour)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				key := fmt.Sprint((i*7 + g) % 16)
				e, _, err := c.Load(t.Context(), key)
				if err != nil || e.Value != key {
					t.Errorf("%s gives %+v, %v", key, e, err)
				}
				if i%5 == 0 {
					c.Forget(e)
				}
			}
		})
	}
	wg.Wait()
	contents(t, c)
}

func TestNewPanics(t *testing.T) {
	for _, bounds := range [][2]int{{0, 1}, {1, 0}, {-1, 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("no panic for %v", bounds)
				}
			}()
			New(bounds[0], bounds[1], forAnHour)
		}()
	}
}

func BenchmarkLoad(b *testing.B) {
	c := New(10_000, 20<<20, forAnHour)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprint("a key of about the length of an opaque token, number ", i)
	}
	b.Run("hit", func(b *testing.B) {
		for _, key := range keys {
			_, _, _ = c.Load(context.Background(), key)
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			if _, _, err := c.Load(context.Background(), keys[i%len(keys)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("miss", func(b *testing.B) {
		c := New(64, 1<<20, forAnHour)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			if _, _, err := c.Load(context.Background(), keys[i%len(keys)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
