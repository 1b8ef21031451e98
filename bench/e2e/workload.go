//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// A kind is the way in which a workload loads a contender and what it measures.
type kind int

const (
	closed kind = iota // every connection sends again as soon as it has an answer
	paced              // all contenders get the same number of requests a second
	idle               // connections that do nothing after one request
)

// A workload is one kind of request, sent alike to every contender.
type workload struct {
	name, title string
	kind        kind
	method      string
	path        string
	body        int   // bytes of the request's
	want        int64 // bytes of the answer's
	share       int   // it sends -requests divided by this, since each costs so much more
	tls         bool
	parts       int // of an aggregate; the reference gets one GET of 1 KiB instead
}

const (
	partPath  = "/files/500.json"
	partBytes = 500
	homePath  = "/home"
	swallowed = "swallowed\n" // the answer to a POST
)

// files are what the target serves, and their sizes.
var files = map[string]int64{"500.json": partBytes, "1k": 1 << 10, "64k": 64 << 10, "1m": 1 << 20}

// partNames are the members of the aggregate.
var partNames = []string{"user", "orders", "history", "offers", "messages"}

var workloads = []*workload{
	{name: "get1k", title: "1 KiB GET", method: "GET", path: "/files/1k", want: 1 << 10, share: 1},
	{name: "get64k", title: "64 KiB GET", method: "GET", path: "/files/64k", want: 64 << 10, share: 4},
	{name: "post4k", title: "4 KiB POST", method: "POST", path: "/files/swallow", body: 4 << 10, want: int64(len(swallowed)), share: 1},
	{name: "get1m", title: "1 MiB GET", method: "GET", path: "/files/1m", want: 1 << 20, share: 40},
	{name: "tls", title: "1 KiB GET over TLS", method: "GET", path: "/files/1k", want: 1 << 10, share: 1, tls: true},
	{name: "aggregate", title: "Five 500-byte answers in one", method: "GET", path: homePath, share: 4, parts: len(partNames)},
	{name: "paced", title: "1 KiB GET, equal load", kind: paced, method: "GET", path: "/files/1k", want: 1 << 10, share: 2},
	{name: "idle", title: "Idle connections", kind: idle, method: "GET", path: "/files/1k", want: 1 << 10, share: 1},
}

func workloadNames() (names []string) {
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// call is the request of the workload, with fields as a browser's script sends them and a token.
func (w *workload) call(token string) call {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\n", w.method, w.path)
	b.WriteString("User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: application/json\r\nAccept-Language: en\r\nAccept-Encoding: gzip, br\r\nCookie: theme=dark; lang=en\r\n" +
		"Authorization: Bearer " + token + "\r\n")
	if w.body > 0 {
		fmt.Fprintf(&b, "Content-Type: application/octet-stream\r\nContent-Length: %d\r\n", w.body)
	}
	b.WriteString("\r\n")
	b.WriteString(strings.Repeat("x", w.body))
	return call{wire: []byte(b.String()), want: w.want}
}

// callFor is the request that a contender gets: where the workload is an aggregate, the reference, which can only
// forward, gets the plain GET that the aggregate is measured by.
func (w *workload) callFor(c *contender, token string) call {
	if w.parts == 0 {
		return w.call(token)
	}
	if c.name == reference {
		return workloads[0].call(token)
	}
	return w.call(token)
}

// probeAggregate asks a contender for the aggregate once and returns its length. The members must be the parts' bodies;
// of a contender that -with names, whose form is its own, only the length is looked at.
func (w *workload) probeAggregate(c *contender, addr, token string) (length int64, err error) {
	r, err := http.NewRequest("GET", "http://"+addr+w.path, nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Close = true
	res, err := (&http.Client{Transport: new(http.Transport), Timeout: 10 * time.Second}).Do(r)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return 0, err
	}
	if res.StatusCode != 200 || len(body) < w.parts*partBytes {
		return 0, fmt.Errorf("status %d and %d bytes", res.StatusCode, len(body))
	}
	if !c.foreign {
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			return 0, err
		}
		for _, name := range partNames {
			if !bytes.Equal(members[name], fileBody(partBytes)) {
				return 0, fmt.Errorf("member %q is not the part's body", name)
			}
		}
	}
	return int64(len(body)), nil
}
