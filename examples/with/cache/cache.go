package main

import (
	"bytes"
	"container/list"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// cache is a small shared cache (RFC 9111). It stores 200 answers to GET that say how long they are fresh,
// and asks again with their ETag when they are not. It guesses no freshness, stores nothing partial, and
// serves nothing stale.
type cache struct {
	next     http.RoundTripper
	max      int   // answers held
	maxBytes int64 // of each body; larger ones pass through
	now      func() time.Time

	mu      sync.Mutex
	entries map[string]*list.Element // by URL; one variant of each
	order   *list.List               // of *entry, the last used first
}

// entry is a stored answer. It is replaced and never changed.
type entry struct {
	url    string
	vary   http.Header // the request's fields that the answer depends on
	header http.Header
	body   []byte
	at     time.Time     // when the request for it was sent
	age    time.Duration // that it had then
	fresh  time.Duration // from its origin on
}

func newCache(next http.RoundTripper, max int, maxBytes int64) *cache {
	return &cache{next: next, max: max, maxBytes: maxBytes, now: time.Now, entries: make(map[string]*list.Element), order: list.New()}
}

// RoundTrip answers from the cache where it can.
func (c *cache) RoundTrip(r *http.Request) (*http.Response, error) {
	url := r.URL.String() + " " + r.Host
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		res, err := c.next.RoundTrip(r)
		if err == nil && r.Method != http.MethodOptions && r.Method != http.MethodTrace && res.StatusCode < 400 {
			c.drop(url) // section 4.4
		}
		return res, err
	}
	if r.Header.Get("Range") != "" || r.Header.Get("Upgrade") != "" || has(r.Header, "no-store") {
		return c.next.RoundTrip(r)
	}
	e := c.find(url, r.Header)
	sent := c.now()
	if e != nil && sent.Sub(e.at)+e.age < e.fresh && !has(r.Header, "no-cache") && !has(r.Header, "max-age") && r.Header.Get("Pragma") == "" {
		return e.answer(r, sent), nil
	}
	validating := e != nil && e.header.Get("ETag") != "" && !conditional(r.Header)
	asked := r
	if validating {
		asked = r.Clone(r.Context())
		asked.Header.Set("If-None-Match", e.header.Get("ETag"))
	}
	res, err := c.next.RoundTrip(asked)
	if err != nil {
		return nil, err
	}
	if validating && res.StatusCode == http.StatusNotModified {
		_ = res.Body.Close()
		updated := *e
		updated.header = e.header.Clone() // section 3.2
		for name, values := range res.Header {
			if name != "Content-Length" && name != "Content-Encoding" {
				updated.header[name] = values
			}
		}
		updated.at, updated.age = sent, seconds(updated.header.Get("Age"))
		updated.fresh = freshness(r.Header, updated.header)
		c.put(&updated)
		return updated.answer(r, sent), nil
	}
	fresh := freshness(r.Header, res.Header)
	switch {
	case r.Method != http.MethodGet:
	case res.StatusCode == http.StatusOK && fresh > 0 && res.ContentLength <= c.maxBytes && len(res.Trailer) == 0:
		header := res.Header.Clone()
		header.Del("Content-Length")
		res.Body = &recorder{ReadCloser: res.Body, cache: c, entry: &entry{
			url: url, vary: varying(r.Header, header), header: header, at: sent, age: seconds(header.Get("Age")), fresh: fresh,
		}}
	case res.StatusCode < 500:
		c.drop(url)
	}
	return res, nil
}

// answer makes a response of e.
func (e *entry) answer(r *http.Request, now time.Time) *http.Response {
	h := e.header.Clone()
	h.Set("Age", strconv.Itoa(int((now.Sub(e.at) + e.age).Seconds())))
	res := &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Request: r,
		Body: io.NopCloser(bytes.NewReader(e.body)), ContentLength: int64(len(e.body)),
	}
	if tag := h.Get("ETag"); tag != "" && slices.Contains(strings.Split(strings.ReplaceAll(r.Header.Get("If-None-Match"), " ", ""), ","), tag) {
		res.StatusCode, res.Body, res.ContentLength = http.StatusNotModified, http.NoBody, 0
		return res
	}
	h.Set("Content-Length", strconv.Itoa(len(e.body)))
	if r.Method == http.MethodHead {
		res.Body = http.NoBody
	}
	return res
}

// find returns the answer that is stored for url, nil if there is none or it is for other request fields.
func (c *cache) find(url string, request http.Header) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.entries[url]
	if at == nil {
		return nil
	}
	e := at.Value.(*entry)
	for name, values := range e.vary {
		if !slices.Equal(values, request[name]) {
			return nil
		}
	}
	c.order.MoveToFront(at)
	return e
}

func (c *cache) put(e *entry) {
	c.drop(e.url)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[e.url] = c.order.PushFront(e)
	if last := c.order.Back(); c.order.Len() > c.max {
		delete(c.entries, c.order.Remove(last).(*entry).url)
	}
}

func (c *cache) drop(url string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.entries[url]; at != nil {
		c.order.Remove(at)
		delete(c.entries, url)
	}
}

// recorder stores a body that is read to its end.
type recorder struct {
	io.ReadCloser
	cache *cache
	entry *entry // nil when there is nothing to store, or no more
}

func (b *recorder) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.entry != nil {
		b.entry.body = append(b.entry.body, p[:n]...)
		if int64(len(b.entry.body)) > b.cache.maxBytes || err != nil && err != io.EOF {
			b.entry = nil
		} else if err == io.EOF {
			b.cache.put(b.entry)
			b.entry = nil
		}
	}
	return n, err
}

// freshness returns how long an answer is fresh in a shared cache, 0 if it must not be stored (sections 3 and
// 4.2.1).
func freshness(request, answer http.Header) time.Duration {
	d := directives(answer)
	age, shared := d["s-maxage"]
	_, public := d["public"]
	if (request.Get("Authorization") != "" && !public && !shared) || has(answer, "no-store") || has(answer, "private") || has(answer, "no-cache") ||
		answer.Get("Set-Cookie") != "" || strings.Contains(strings.Join(answer["Vary"], ","), "*") {
		return 0
	}
	if !shared {
		age = d["max-age"]
	}
	if _, ok := d["max-age"]; ok || shared {
		return seconds(age)
	}
	expires, err := http.ParseTime(answer.Get("Expires"))
	date, dateErr := http.ParseTime(answer.Get("Date"))
	if err != nil || dateErr != nil {
		return 0
	}
	return expires.Sub(date)
}

// varying returns the request's fields that Vary names.
func varying(request, answer http.Header) http.Header {
	vary := make(http.Header)
	for name := range strings.SplitSeq(strings.Join(answer["Vary"], ","), ",") {
		if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "" {
			vary[name] = request[name]
		}
	}
	return vary
}

// directives returns those of Cache-Control. Of two alike the first counts.
func directives(h http.Header) map[string]string {
	d := make(map[string]string)
	for part := range strings.SplitSeq(strings.Join(h["Cache-Control"], ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if name = strings.ToLower(name); name != "" {
			if _, ok := d[name]; !ok {
				d[name] = strings.Trim(value, `"`)
			}
		}
	}
	return d
}

func has(h http.Header, directive string) bool {
	_, ok := directives(h)[directive]
	return ok
}

func conditional(h http.Header) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(h)), func(name string) bool { return strings.HasPrefix(name, "If-") })
}

// seconds returns delta-seconds; what is none counts as 0, which is stale.
func seconds(s string) time.Duration {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}
