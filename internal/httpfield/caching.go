package httpfield

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Caching is what a response permits caches to do with it, according to its fields Cache-Control, Expires,
// Pragma and Age (RFC 9111). The zero value is for a response without these fields. Directives that only
// permit more are ignored: immutable, stale-while-revalidate, stale-if-error and must-understand.
type Caching struct {
	stated bool // one of the fields is there
	flags  cachingFlags
	age    lifetime // for every cache: max-age or Expires
	shared lifetime // for shared caches: s-maxage
}

type cachingFlags uint8

const (
	noStore cachingFlags = 1 << iota
	private
	noCache
	mustRevalidate
	proxyRevalidate
	noTransform
	public    // the combination has it only if every response has it
	shareable // a shared cache may store it although its request was authorized (section 3.5); likewise
)

// lifetime is how many seconds a response stays fresh.
type lifetime struct {
	seconds int64
	known   bool
}

// limit shortens the lifetime to n seconds.
func (l *lifetime) limit(n int64) {
	if !l.known || n < l.seconds {
		*l = lifetime{max(n, 0), true}
	}
}

// CachingOf returns the caching of a response that has just arrived with the header h. now is time.Now,
// called only if needed.
func CachingOf(h http.Header, now func() time.Time) Caching {
	var c Caching
	lines := h["Cache-Control"]
	expires := h["Expires"]
	if len(lines) == 0 && len(expires) == 0 && len(h["Pragma"]) == 0 {
		return c
	}
	for _, line := range lines {
		for line != "" {
			var directive string
			directive, line = cutDirective(line)
			c.add(directive)
		}
	}
	if len(lines) == 0 && HasToken(h["Pragma"], "no-cache") {
		c.flags |= noCache
		c.stated = true
	}
	if len(expires) > 0 && !c.age.known {
		c.stated = true
		c.age.limit(untilExpiry(h, now))
	}
	if age := h["Age"]; len(age) > 0 {
		if n, err := strconv.ParseInt(age[0], 10, 64); err == nil && n > 0 {
			c.age.spend(n)
			c.shared.spend(n)
		}
	}
	return c
}

// spend subtracts the time for which the response was stored in caches on its way here.
func (l *lifetime) spend(n int64) {
	if l.known {
		l.seconds = max(0, l.seconds-n)
	}
}

// untilExpiry returns the seconds from Date, or now, to Expires. A malformed Expires is in the past.
func untilExpiry(h http.Header, now func() time.Time) int64 {
	at, err := http.ParseTime(h.Get("Expires"))
	if err != nil {
		return 0
	}
	from, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		from = now()
	}
	return int64(at.Sub(from) / time.Second)
}

// cutDirective splits a list after its first element. Elements may contain quoted strings.
func cutDirective(line string) (directive, rest string) {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			return line[:i], line[i+1:]
		}
	}
	return line, ""
}

func (c *Caching) add(directive string) {
	name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
	name = strings.ToLower(strings.TrimSpace(name))
	if name == "" {
		return
	}
	c.stated = true
	switch name {
	case "no-store":
		c.flags |= noStore
	case "private": // also with field names, although it then applies only to those fields
		c.flags |= private
	case "no-cache":
		c.flags |= noCache
	case "must-revalidate":
		c.flags |= mustRevalidate | shareable
	case "proxy-revalidate":
		c.flags |= proxyRevalidate
	case "no-transform":
		c.flags |= noTransform
	case "public":
		c.flags |= public | shareable
	case "max-age":
		c.age.limit(seconds(value))
	case "s-maxage":
		c.flags |= shareable
		c.shared.limit(seconds(value))
	}
}

// seconds parses the argument of max-age. A malformed one is 0: the response is stale.
func seconds(value string) int64 {
	value = strings.Trim(strings.TrimSpace(value), `"`)
	for i := range len(value) {
		if value[i] < '0' || value[i] > '9' {
			return 0
		}
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil && value != "" {
		return math.MaxInt32 // it overflows (section 1.2.2)
	}
	return min(n, math.MaxInt32)
}

// Strictest combines the caching of several responses into that of one response made from them. The zero
// value combines none.
type Strictest struct {
	stated           bool
	begun            bool
	flags            cachingFlags
	age, shared      lifetime // the least
	ageless          bool     // a part has no lifetime
	anyAge, anyShare bool
}

// Add adds the caching of one response. A response without any of the fields permits no lifetime, and none of
// the permissions that every response must give.
func (s *Strictest) Add(c Caching) {
	const unanimous = public | shareable
	all := s.flags & c.flags & unanimous
	if !s.begun {
		all = c.flags & unanimous
	}
	s.begun, s.stated = true, s.stated || c.stated
	s.flags = (s.flags|c.flags)&^unanimous | all

	s.anyAge = s.anyAge || c.age.known
	s.anyShare = s.anyShare || c.shared.known
	if !c.age.known {
		s.ageless = true
	} else {
		s.age.limit(c.age.seconds)
	}
	switch {
	case c.shared.known:
		s.shared.limit(c.shared.seconds)
	case c.age.known:
		s.shared.limit(c.age.seconds)
	default:
		s.shared.limit(0)
	}
}

// Format returns a Cache-Control that is at least as strict as that of each response, or "" if no response
// has any of the fields. personal says that the request identifies its caller. Then the result is private,
// unless every response permits shared caches.
func (s *Strictest) Format(personal bool) string {
	switch {
	case !s.stated:
		return ""
	case s.flags&noStore != 0:
		return "no-store"
	}
	var b []byte
	add := func(directive string) {
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, directive...)
	}
	alone := s.flags&private != 0 || personal && s.flags&shareable == 0
	switch {
	case alone:
		add("private")
	case s.flags&public != 0:
		add("public")
	}
	if s.flags&noCache != 0 {
		add("no-cache")
	}
	age := s.age.seconds
	if s.ageless {
		age = 0
	}
	ofItsOwn := s.anyShare && !alone && s.flags&shareable != 0
	if s.anyShare && !alone && !ofItsOwn {
		age = min(age, s.shared.seconds) // s-maxage would permit too much
	}
	if s.anyAge || s.anyShare && !alone && !ofItsOwn {
		add("max-age=")
		b = strconv.AppendInt(b, age, 10)
	}
	if ofItsOwn {
		add("s-maxage=")
		b = strconv.AppendInt(b, s.shared.seconds, 10)
	}
	for _, directive := range [...]struct {
		flag cachingFlags
		name string
	}{{mustRevalidate, "must-revalidate"}, {proxyRevalidate, "proxy-revalidate"}, {noTransform, "no-transform"}} {
		if s.flags&directive.flag != 0 {
			add(directive.name)
		}
	}
	if len(b) == 0 {
		return "no-cache" // the fields hold only directives that are ignored
	}
	return string(b)
}
