package httpfield

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestSameName(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"X-User-ID", "x_user_id", true}, {"X-User-ID", "xuserid", true}, {"X-User-ID", "--x.USER~id--", true},
		{"X-User-ID", "X-User-IDs", false}, {"X-User-IDs", "X-User-ID", false}, {"X-User-ID", "X-User-1D", false},
		{"a1", "A_1", true}, {"", "", true}, {"-", "_", true}, {"", "a", false}, {"ä", "ö", true},
	} {
		if got := SameName(tt.a, tt.b); got != tt.want {
			t.Errorf("SameName(%q, %q) = %v", tt.a, tt.b, got)
		}
	}
	if n := testing.AllocsPerRun(10, func() { _ = SameName("X-User-ID", "x_user_id") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNames(t *testing.T) {
	var none, s Names
	s.Add("X-User-ID")
	s.Add("-1st")
	s.AddPrefix("X-Forwarded-")
	for name, want := range map[string]bool{
		"X-User-Id": true, "x_user.id": true, "--XUSERID": true, "X-User": false, "X-User-Ids": false, "User-Id": false,
		"1ST": true, "_1-s-t": true, "2nd": false, "st": false,
		"X-Forwarded-For": true, "x.forwarded": true, "XFORWARDED_user": true, "X-Forward": false, "Forwarded": false,
		"": false, "-": false, "Accept": false,
	} {
		if got := s.Has(name); got != want {
			t.Errorf("Has(%q) = %v", name, got)
		}
		if none.Has(name) {
			t.Errorf("the empty set has %q", name)
		}
	}
}

// FuzzNames compares the set with its definition.
func FuzzNames(f *testing.F) {
	f.Add("x_user_id", "X-User-ID")
	f.Add("X-Forwarded-", "x")
	f.Fuzz(func(t *testing.T, a, b string) {
		fold := func(s string) string {
			return strings.Map(func(c rune) rune {
				if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
					return c | 0x20
				}
				return -1
			}, s)
		}
		same := fold(a) == fold(b)
		var set, family Names
		set.Add(b)
		family.AddPrefix(b)
		if got := SameName(a, b); got != same {
			t.Errorf("SameName(%q, %q) = %v", a, b, got)
		}
		if got := set.Has(a); got != (same && fold(a) != "") {
			t.Errorf("{%q}.Has(%q) = %v", b, a, got)
		}
		if got := family.Has(a); got != (fold(b) != "" && strings.HasPrefix(fold(a), fold(b))) {
			t.Errorf("prefix %q: Has(%q) = %v", b, a, got)
		}
	})
}

func TestSyntax(t *testing.T) {
	for _, tt := range []struct {
		name  string
		is    func(string) bool
		yes   []string
		never []string
	}{
		{"token", IsToken, []string{"a", "X-A", "!#$%&'*+-.^_`|~09"}, []string{"", "a b", "a,b", "a\n", "ä", "(", "a\"", "a:b", "\x00", "\x7f"}},
		{"token68", IsToken68, []string{"a", "aZ09-._~+/", "a=", "a=="}, []string{"", "=", "a=b", "a b", "a,", "ä", "a\n"}},
		{"host", IsHost, []string{"", "a.example:80", "a.example:", "a.example.:80", ":80", ".a", "[::1]:80", "[::1%25eth0]", "a_b", "%41", "!$&'()*+;="},
			[]string{"a,b", "a b", "a/b", "a@b", "a?b", "a#b", "a\"", "a\\", "ä", "\x00", "\x7f",
				"a:80:80", "a::", "a:[", "a:x", "a:80.", "::1", "[a]", "[a]:80", "[1.2.3.4]", "[::1", "[::1]a", "[::1]:x", "[::1%a/b]", "a[", "a]:80", "a..", "a..b"}},
		{"printable", IsPrintable, []string{"", " a~", `"\`}, []string{"\t", "\n", "\x7f", "ä", "\xff"}},
		{"value", IsValue, []string{"a", "a b", "ä", "a\u00a0b", `a"\`}, []string{
			"", " ", " a", "a ", "a\tb", "a\r\nb", "a\x00", "a\x7f", "\u00a0a", "ä\u00a0", "ä\u0085b", "a\xff", "ä\xff", "ä\n",
		}},
	} {
		for _, s := range tt.yes {
			if !tt.is(s) {
				t.Errorf("%q is a %s", s, tt.name)
			}
		}
		for _, s := range tt.never {
			if tt.is(s) {
				t.Errorf("%q is no %s", s, tt.name)
			}
		}
	}
	for in, want := range map[string]string{"a": "a", "a b": "a_b", "äö": "__", "a\"\n": "a__", "": ""} {
		if got := ToToken(in); got != want {
			t.Errorf("ToToken(%q) = %q", in, got)
		}
	}
}

func TestHasControl(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "a b\tc": false, "\u00fc \xff": false, "a\x00": true, "\r\n": true, "\x1f": true, "\x7f": true,
	} {
		if got := HasControl(s); got != want {
			t.Errorf("HasControl(%q) = %v", s, got)
		}
	}
	// Every byte at every place of a word, among bytes that are next to the limits.
	for _, other := range []byte{'a', ' ', '\t', '~', 0x80, 0xa0, 0xff} {
		for place := range 19 {
			for c := range 256 {
				s := bytes.Repeat([]byte{other}, 19)
				s[place] = byte(c)
				want := c < ' ' && c != '\t' || c == 0x7f
				if got := HasControl(string(s)); got != want {
					t.Fatalf("HasControl(%q) = %v", s, got)
				}
			}
		}
	}
}

func TestHasToken(t *testing.T) {
	for _, tt := range []struct {
		lists []string
		token string
		want  bool
	}{
		{[]string{"close"}, "Close", true}, {[]string{"a, b ,\tC"}, "c", true}, {[]string{"a", "b,upgrade"}, "Upgrade", true},
		{[]string{"upgrades"}, "upgrade", false}, {[]string{"a;q=0"}, "a", false}, {nil, "a", false}, {[]string{""}, "a", false},
	} {
		if got := HasToken(tt.lists, tt.token); got != tt.want {
			t.Errorf("HasToken(%q, %q) = %v", tt.lists, tt.token, got)
		}
	}
}

func TestBodyAllowed(t *testing.T) {
	for status, want := range map[int]bool{100: false, 101: false, 199: false, 200: true, 204: false, 205: true, 304: false, 404: true, 500: true} {
		if got := BodyAllowed(status); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
}

func TestRemoveHopByHop(t *testing.T) {
	h := http.Header{
		"Connection": {"x-a, ,Close", "X-B"}, "X-A": {"1"}, "X-B": {"1"}, "X-C": {"1"}, "Keep-Alive": {"1"}, "Te": {"trailers"},
		"Transfer-Encoding": {"chunked"}, "Upgrade": {"a"}, "Trailer": {"X"}, "Proxy": {"http://evil.example"}, "Proxy-Connection": {"1"},
		"Proxy-Authorization": {"1"}, "Proxy-Authenticate": {"1"}, "Http2-Settings": {"1"}, "Close": {"1"},
	}
	RemoveHopByHop(h)
	if len(h) != 1 || h["X-C"] == nil {
		t.Errorf("left: %v", h)
	}
}

func TestAllowedInTrailer(t *testing.T) {
	for _, name := range []string{"X-End", "Grpc-Status", "Etag", "Digest", "Iff"} {
		if !AllowedInTrailer(name) {
			t.Errorf("%s is refused", name)
		}
	}
	for _, name := range []string{"Authorization", "Content-Length", "Content-Type", "Cookie", "Set-Cookie", "Host", "If-Match", "Te", "Connection", "Transfer-Encoding", "Trailer", "Www-Authenticate"} {
		if AllowedInTrailer(name) {
			t.Errorf("%s is allowed", name)
		}
	}
}

func TestUpgradeProtocols(t *testing.T) {
	for _, tt := range []struct {
		connection, upgrade []string
		want                string
	}{
		{[]string{"Upgrade"}, []string{"websocket"}, "websocket"}, {[]string{"keep-alive, upgrade"}, []string{"a/1, h2c", "b"}, "a/1, b"},
		{[]string{"keep-alive"}, []string{"websocket"}, ""}, {nil, []string{"websocket"}, ""}, {[]string{"Upgrade"}, nil, ""},
		{[]string{"Upgrade"}, []string{"h2c, H2, HTTP/2.0, TLS/1.0, ,"}, ""},
	} {
		if got := UpgradeProtocols(http.Header{"Connection": tt.connection, "Upgrade": tt.upgrade}); got != tt.want {
			t.Errorf("%q, %q: %q, want %q", tt.connection, tt.upgrade, got, tt.want)
		}
	}
}

func TestStructured(t *testing.T) {
	for _, tt := range []struct {
		got  []byte
		want string
	}{
		{AppendString([]byte("a="), `say "\"`), `a="say \"\\\""`}, {AppendString(nil, ""), `""`}, {[]byte(String(`a"b`)), `"a\"b"`},
		{AppendInteger([]byte("a;q="), 7), "a;q=7"}, {AppendInteger(nil, -1), "0"}, {AppendInteger(nil, 1<<62), "999999999999999"},
		{AppendDecimal(nil, 1.5), "1.500"}, {AppendDecimal(nil, -1), "0.000"}, {AppendDecimal(nil, 1e20), "999999999999.000"}, {AppendDecimal(nil, 0.0004), "0.000"},
		{AppendBytes([]byte("a="), []byte("hello")), "a=:aGVsbG8=:"}, {AppendBytes(nil, nil), "::"},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
	buf := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(10, func() { buf = AppendInteger(AppendString(buf[:0], `a"b`), 7) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !slices.Equal(buf, []byte(`"a\"b"7`)) {
		t.Errorf("%s", buf)
	}
}

// BenchmarkNames asks about the fields of a usual request: a few share their first letter with an owned field.
func BenchmarkNames(b *testing.B) {
	var s Names
	for _, name := range []string{"X-User-Id", "Forwarded", "X-Real-Ip", "Client-Cert", "Traceparent", "Tracestate", "X-Trace-Id"} {
		s.Add(name)
	}
	s.AddPrefix("X-Forwarded-")
	fields := []string{"Accept", "Accept-Encoding", "Cookie", "Content-Type", "Content-Length", "User-Agent", "X-Requested-With", "Authorization"}
	b.ReportAllocs()
	for b.Loop() {
		for _, name := range fields {
			if s.Has(name) {
				b.Fatal(name)
			}
		}
	}
}
