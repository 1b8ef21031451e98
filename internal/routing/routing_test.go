package routing

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// add parses the pattern and adds the route. It fails the test when either fails.
func add(t *testing.T, tree *Tree, pattern string, predicates ...Predicate) int {
	t.Helper()
	p, err := Parse(pattern)
	if err != nil {
		t.Fatal(err)
	}
	n, err := tree.Add(Route{Pattern: p, Predicates: predicates, Location: "file:" + pattern})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func treeOf(t *testing.T, patterns ...string) *Tree {
	t.Helper()
	tree := new(Tree)
	for i, p := range patterns {
		if n := add(t, tree, p); n != i {
			t.Fatalf("%q has number %d, want %d", p, n, i)
		}
	}
	return tree
}

func request(t *testing.T, methodTarget string) *http.Request {
	t.Helper()
	method, target, ok := strings.Cut(methodTarget, " ")
	if !ok {
		t.Fatalf("%q is not a method and a target", methodTarget)
	}
	return httptest.NewRequest(method, target, nil)
}

func TestDecide(t *testing.T) {
	tree := treeOf(t,
		"GET /a",              // 0
		"POST /a",             // 1
		"/files/{name}",       // 2
		"/files/{dir}/{p...}", // 3
		"GET /tree/",          // 4
		"h.example/{x}",       // 5
		"/files/me",           // 6
		"/any/{p...}",         // 7
		"POST /any/a",         // 8
	)
	for _, tt := range []struct {
		request string
		want    Decision
		values  string
	}{
		{"GET /a", Decision{Status: 200, Route: 0}, ""},
		{"HEAD /a", Decision{Status: 200, Route: 0}, ""},
		{"POST /a", Decision{Status: 200, Route: 1}, ""},
		{"PUT /a", Decision{Status: 405, Allow: "GET, HEAD, OPTIONS, POST"}, ""},
		{"OPTIONS /a", Decision{Status: 204, Allow: "GET, HEAD, OPTIONS, POST"}, ""},
		{"OPTIONS *", Decision{Status: 204}, ""},
		{"GET /files/me", Decision{Status: 200, Route: 6}, ""},
		{"GET /files/a%2Fb", Decision{Status: 400, Reason: "an encoded slash that leads some servers to another route"}, ""},
		{"GET /files/a%20b;c", Decision{Status: 200, Route: 2}, "name=a b;c "},
		{"GET /files/a/b%2Fc/", Decision{Status: 200, Route: 3}, "dir=a p=b/c/ "},
		{"GET /files/a/", Decision{Status: 200, Route: 3}, "dir=a p= "},
		{"GET http://H.example:80/a", Decision{Status: 200, Route: 5}, "x=a "},
		{"GET http://h.example/files/b", Decision{Status: 200, Route: 2}, "name=b "},
		{"GET /tree?x=1", Decision{Status: 308, Location: "/tree/?x=1"}, ""},
		{"GET //a", Decision{Status: 308, Location: "/a"}, ""},
		{"POST /tree/", Decision{Status: 405, Allow: "GET, HEAD, OPTIONS"}, ""},
		{"post /any/a", Decision{Status: 405, Allow: "POST"}, ""},
		{"Put /any/a", Decision{Status: 200, Route: 7}, "p=a "},
		{"post /any/b", Decision{Status: 200, Route: 7}, "p=b "},
		{"post /any/a;x", Decision{Status: 400, Reason: "parameters that leads some servers to another route"}, ""},
		{"post /any/b;x", Decision{Status: 200, Route: 7}, "p=b;x "},
		{"post /a", Decision{Status: 405, Allow: "GET, HEAD, OPTIONS, POST"}, ""},
		{"GET /a/../b", Decision{Status: 400, Reason: "a dot segment"}, ""},
		{"GET /%5c", Decision{Status: 400, Reason: "a backslash"}, ""},
		{"GET /none", Decision{Status: 404}, ""},
		{"CONNECT h.example:443", Decision{Status: 404}, ""},
	} {
		t.Run(tt.request, func(t *testing.T) {
			for name, decide := range map[string]func(*http.Request, *Search) Decision{
				"Decide": tree.Decide,
				"Survey": func(r *http.Request, s *Search) Decision { d, _ := tree.Survey(r, s); return d },
			} {
				var s Search
				got := decide(request(t, tt.request), &s)
				if got != tt.want {
					t.Errorf("%s: %+v, want %+v", name, got, tt.want)
				}
				values := ""
				for n, v := range s.PathValues() {
					values += n + "=" + v + " "
				}
				if got.Status == 200 && values != tt.values {
					t.Errorf("%s: path values %q, want %q", name, values, tt.values)
				}
			}
		})
	}
}

// Of routes with one pattern, the one with more Header predicates is tried first, then the one with more
// Query predicates, and then the one that was added first.
func TestPrecedence(t *testing.T) {
	asked := ""
	predicate := func(name string, kind Kind, holds bool) Predicate {
		return Predicate{Name: name, Kind: kind, Holds: func(*http.Request) bool { asked += name; return holds }}
	}
	tree := new(Tree)
	add(t, tree, "/a", predicate("d", Other, false), predicate("e", Other, true))
	add(t, tree, "/a", predicate("c", Query, false))
	add(t, tree, "/a", predicate("b", Header, false))
	add(t, tree, "/a", predicate("a", Header, true), predicate("x", Header, false))
	add(t, tree, "/a")
	add(t, tree, "/")
	var s Search
	if d := tree.Decide(request(t, "GET /a"), &s); d.Status != 200 || d.Route != 4 || asked != "axbcd" {
		t.Errorf("%+v after %s", d, asked)
	}
	if got, want := slices.Collect(tree.All()), []int{3, 2, 1, 0, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("All yields %v, want %v", got, want)
	}
	for range tree.All() {
		break // must not go on
	}
	s = Search{}
	_, verdicts := tree.Survey(request(t, "GET /a"), &s)
	want := []Verdict{{3, false, "x"}, {2, false, "b"}, {1, false, "c"}, {0, false, "d"}, {4, true, ""}, {5, false, "precedence"}}
	if !reflect.DeepEqual(verdicts, want) {
		t.Errorf("%v, want %v", verdicts, want)
	}
}

func TestSurvey(t *testing.T) {
	tree := treeOf(t, "/", "POST /a", "GET /a", "/b", "h.example/a")
	for _, tt := range []struct {
		request, want string
	}{
		{"GET /a", "2:taken 1:method 0:precedence 4:host 3:path"},
		{"GET http://h.example/a", "4:taken 2:precedence 1:method 0:precedence 3:path"},
		{"GET http://h.example/b", "3:taken 0:precedence 4:path 2:path 1:path"},
		{"GET //a", ""},
		{"GET /..", ""},
	} {
		var s Search
		_, verdicts := tree.Survey(request(t, tt.request), &s)
		var got []string
		for _, v := range verdicts {
			if v.Taken {
				v.Reason += "taken"
			}
			got = append(got, fmt.Sprint(v.Route, ":", v.Reason))
		}
		want := strings.Fields(tt.want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", tt.request, got, want)
		}
	}
}

// A route that is refused leaves the tree as it was.
func TestAddRefuses(t *testing.T) {
	yes := func(name string) Predicate {
		return Predicate{Name: name, Holds: func(*http.Request) bool { return true }}
	}
	for _, tt := range []struct {
		name, one, two string
		first, second  []Predicate
		want           string // "": it is accepted
	}{
		{"alike", "GET /a", "GET /a", nil, nil, `matches the same requests as pattern "GET /a" (registered at file:GET /a)`},
		{"fewer predicates", "/a", "/a", []Predicate{yes("x")}, nil, ""},
		{"more predicates, too late", "/a", "/a", nil, []Predicate{yes("x")}, `can never match: pattern "/a" (registered at file:/a) is tried before it`},
		{"other predicates", "/a", "/a", []Predicate{yes("x")}, []Predicate{yes("y")}, ""},
		{"overlap", "/{x}/b", "/a/{x}", nil, nil, `conflicts with pattern "/{x}/b" (registered at file:/{x}/b): both match some paths, like "/a/b", ` +
			"but neither is more specific.\n\"/{x}/b\" matches \"/x/b\", but \"/a/{x}\" does not.\n\"/a/{x}\" matches \"/a/x\", but \"/{x}/b\" does not"},
		{"overlap, other methods", "GET /{x}/b", "POST /a/{x}", nil, nil, ""},
		{"overlap on another host", "h.example/{x}/b", "/a/{x}", nil, nil, ""},
		{"overlap below a slash", "/{x}/b/c/", "/a/", nil, nil, `like "/a/b/c/"`},
		{"more specific below a slash", "/a/b/{x}", "/a/", nil, nil, ""},
		{"overlap with all that is left", "/a/{x...}", "/{x}/b", nil, nil, `like "/a/b"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tree Tree
			add(t, &tree, tt.one, tt.first...)
			p, err := Parse(tt.two)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tree.Add(Route{Pattern: p, Predicates: tt.second})
			left := len(slices.Collect(tree.All()))
			switch {
			case tt.want == "" && (err != nil || left != 2):
				t.Errorf("%d routes, %v", left, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || left != 1):
				t.Errorf("%d routes, %v; want %s", left, err, tt.want)
			}
		})
	}
}

func TestCanonicalHost(t *testing.T) {
	for host, want := range map[string]string{
		"": "", "h": "h", "H.Example": "h.example", "h.example.": "h.example", "h:80": "h", "[::1]": "::1", "[::1]:80": "::1", "::1": "::1",
	} {
		if got := canonicalHost(host); got != want {
			t.Errorf("%q: %q, want %q", host, got, want)
		}
	}
}

// FuzzParse: a pattern that is accepted here is accepted by http.ServeMux. One that http.ServeMux accepts and
// that is refused here could never match.
func FuzzParse(f *testing.F) {
	for _, p := range []string{"/", "GET /a/{x}", "h.example/{$}", "/{x...}", "/a/../b", "h:80/", "{x}/", "/%2F", "/{x}/{x}", "/:id", "/*", "/a?b", "/a#b", "get /", "*.a/", "*/", "http://h/x", "G@T /", "GET\t /", "[::1]/"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		_, ours := Parse(pattern)
		theirs := func() (err any) {
			defer func() { err = recover() }()
			http.NewServeMux().Handle(pattern, http.NotFoundHandler())
			return nil
		}()
		if ours == nil && theirs != nil || ours != nil && theirs == nil && !strings.Contains(ours.Error(), "can never match") && !strings.Contains(ours.Error(), "; write ") {
			t.Errorf("%q: %v; ServeMux: %v", pattern, ours, theirs)
		}
	})
}
