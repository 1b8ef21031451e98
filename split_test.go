package gateway_test

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// count returns a handler that counts its requests.
func count(n *int) http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { *n++ })
}

func byHeader(r *http.Request) (string, error) { return r.Header.Get("Key"), nil }

func TestSplitDistribution(t *testing.T) {
	const requests = 100_000
	for name, key := range map[string]gateway.KeyFunc{"chance": nil, "key": byHeader} {
		t.Run(name, func(t *testing.T) {
			weights := []int{90, 7, 0, 3}
			got := make([]int, len(weights))
			branches := make([]gateway.Branch, len(weights))
			for i, w := range weights {
				branches[i] = gateway.Branch{Weight: w, Handler: count(&got[i])}
			}
			h := gateway.Split(key, branches...)
			r := httptest.NewRequest("GET", "/", nil)
			for i := range requests {
				r.Header["Key"] = []string{"user-" + strconv.Itoa(i)}
				h.ServeHTTP(nil, r)
			}
			for i, w := range weights {
				if share := float64(got[i]) / requests; math.Abs(share-float64(w)/100) > 0.01 {
					t.Errorf("branch %d got %.4f, want %d %%", i, share, w)
				}
			}
			if got[2] != 0 {
				t.Errorf("a branch without weight got %d", got[2])
			}
		})
	}
}

func TestSplitSticky(t *testing.T) {
	branch := ""
	split := func(stable, canary int) http.Handler {
		set := func(name string) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { branch = name })
		}
		return gateway.Split(byHeader,
			gateway.Branch{Name: "stable", Weight: stable, Handler: set("stable")},
			gateway.Branch{Name: "canary", Weight: canary, Handler: set("canary")})
	}
	take := func(h http.Handler, key string) string {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Key", key)
		h.ServeHTTP(nil, r)
		return branch
	}
	before, after, tenfold := split(95, 5), split(80, 20), split(950, 50)
	for i := range 1000 {
		key := strconv.Itoa(i)
		was := take(before, key)
		if take(before, key) != was || take(tenfold, key) != was {
			t.Fatalf("key %s did not stay at %s", key, was)
		}
		if was == "canary" && take(after, key) != "canary" {
			t.Fatalf("key %s left the canary as that grew", key)
		}
	}
	// The same in every process: these must never change.
	for key, want := range map[string]string{"": "canary", "alice": "stable", "0": "canary"} {
		if got := take(split(50, 50), key); got != want {
			t.Errorf("key %q takes %s, want %s", key, got, want)
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	h := gateway.Split(func(*http.Request) (string, error) { return "", fmt.Errorf("no key: %w", gateway.ErrUnauthenticated) },
		gateway.Branch{Weight: 1, Handler: named("one")})
	if res := ask(h, "GET", "/"); res.StatusCode != http.StatusUnauthorized {
		t.Error(res.Status)
	}
	h = gateway.Split(func(*http.Request) (string, error) { return "", errors.New("internals") },
		gateway.Branch{Weight: 1, Handler: named("one")})
	if res := ask(h, "GET", "/"); res.StatusCode != http.StatusInternalServerError || strings.Contains(bodyOf(t, res), "internals") {
		t.Error(res.Status)
	}
}

func TestSplitSetupPanics(t *testing.T) {
	for want, branches := range map[string][]gateway.Branch{
		"no branch with a weight": nil,
		"no branch with":          {{Handler: named("a")}},
		"weight out of bounds":    {{Weight: 2, Handler: named("a")}, {Weight: -1, Handler: named("b")}},
		"no handler":              {{Name: "x", Weight: 1}},
	} {
		if got := panicOf(func() { gateway.Split(nil, branches...) }); !strings.HasPrefix(got, "gateway: Split: ") || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
