package routing

import (
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// hosts holds the routes of each host, and those of every host. The trees that a host's request can take form a
// chain: the host's own tree, the wildcards above it from the longest to the shortest, and the tree of every host.
type hosts struct {
	any     hostTree
	exact   map[string]*hostTree // by name
	wild    map[string]*hostTree // by ".example.com", for "*.example.com"
	longest int                  // the length of the longest key of wild
}

// first returns the tree that is searched first for r.
func (t *hosts) first(r *http.Request) *hostTree {
	if len(t.exact)+len(t.wild) == 0 {
		return &t.any
	}
	return t.firstOf(r)
}

// firstOf is first where there are hosts.
func (t *hosts) firstOf(r *http.Request) *hostTree {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	host = canonicalHost(host)
	if h := t.exact[host]; h != nil {
		return h
	}
	return t.above(host)
}

// next returns the tree that is searched after h, or nil when h is the last.
func (t *hosts) next(h *hostTree) *hostTree {
	if h == &t.any {
		return nil
	}
	return t.above(h.name)
}

// above returns the tree of the longest wildcard that name is below, or that of every host.
func (t *hosts) above(name string) *hostTree {
	if len(t.wild) > 0 {
		// The name is the client's. What is longer than every wildcard is not looked up.
		for i := max(1, len(name)-t.longest); i < len(name); i++ {
			if name[i] == '.' {
				if h := t.wild[name[i:]]; h != nil {
					return h
				}
			}
		}
	}
	return &t.any
}

// of returns the tree of a pattern's host, which is new and not in t yet when there is none.
func (t *hosts) of(host string) *hostTree {
	var h *hostTree
	suffix, wild := strings.CutPrefix(host, "*")
	switch {
	case host == "":
		h = &t.any
	case wild:
		h = t.wild[suffix]
	default:
		h = t.exact[host]
	}
	if h == nil {
		h = &hostTree{name: suffix}
	}
	return h
}

// put makes h the tree of a pattern's host.
func (t *hosts) put(host string, h *hostTree) {
	suffix, wild := strings.CutPrefix(host, "*")
	switch {
	case host == "":
	case wild:
		if t.wild == nil {
			t.wild = make(map[string]*hostTree)
		}
		t.wild[suffix] = h
		t.longest = max(t.longest, len(suffix))
	default:
		if t.exact == nil {
			t.exact = make(map[string]*hostTree)
		}
		t.exact[host] = h
	}
}

// all yields the trees of single hosts in alphabetical order, then the wildcards from the longest to the shortest,
// and last the tree of every host.
func (t *hosts) all() iter.Seq[*hostTree] {
	return func(yield func(*hostTree) bool) {
		for _, name := range slices.Sorted(maps.Keys(t.exact)) {
			if !yield(t.exact[name]) {
				return
			}
		}
		wild := slices.Sorted(maps.Keys(t.wild))
		slices.SortStableFunc(wild, func(a, b string) int { return len(b) - len(a) })
		for _, name := range wild {
			if !yield(t.wild[name]) {
				return
			}
		}
		yield(&t.any)
	}
}
