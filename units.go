package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strings"
	"sync"

	"github.com/seed-96248d0c/gateway/internal/eventstream"
	"github.com/seed-96248d0c/gateway/internal/gunzip"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// UnitsFrom returns a function for ProxyOptions.ModifyResponse that reads a number of units from the body of
// a response. It reports them as AddUnits does when the body has ended, even if it was cut off. pointer is
// the JSON Pointer (RFC 6901) to the number:
//
//	gateway.Proxy(llm, &gateway.ProxyOptions{ModifyResponse: gateway.UnitsFrom("/usage/total_tokens")})
//
// In a JSON body (application/json or a type that ends in +json), the pointer applies to the body. In a
// stream of server-sent events, it applies to the JSON data of each event, and the last number that it finds
// is used. Fractions are rounded up. Nothing is reported for a value that is not a positive number, or for
// other media types.
//
// The body is parsed while it is forwarded: it is not delayed or changed, and at most 64 KiB of memory are
// used. If a stream is cut off, the events before the end are used. Some upstreams report usage only at the
// end of a stream, and only on request (OpenAI: stream_options.include_usage). So let Settle return the
// estimate for a stream without units.
//
// A copy of a gzip body is decompressed, and the body is forwarded compressed. This costs processor time in
// proportion to the decompressed size; to avoid it, delete Accept-Encoding in ProxyOptions.Rewrite. A body in
// another coding reports nothing, which is noted in the remarks of the log line.
//
// UnitsFrom panics when pointer is malformed.
func UnitsFrom(pointer string) func(*http.Response) error {
	way, err := rawjson.ParsePointer(pointer)
	if err != nil {
		panic(fmt.Sprintf("gateway: UnitsFrom: %q: %v", pointer, err))
	}
	return func(res *http.Response) error {
		if res.Body == nil || res.Body == http.NoBody || res.Request == nil {
			return nil
		}
		ctx := res.Request.Context()
		ex := exchangeFrom(ctx)
		kind := unitsIn(res.Header)
		if ex == nil || kind == noUnits {
			return nil
		}
		b := &unitsBody{ReadCloser: res.Body, ctx: ctx, finder: rawjson.NewNumberFinder(way)}
		b.write = b.finder.Write
		if kind == unitsInEvents {
			events := &eventstream.Reader{Data: b.finder.Write, End: b.eventEnds}
			b.write = events.Write
		}
		switch coding := strings.ToLower(strings.Join(res.Header["Content-Encoding"], ",")); coding {
		case "", "identity":
		case "gzip", "x-gzip":
			b.zipped = gunzip.New(b.write)
			b.write = b.zipped.Write
		default:
			ex.remark("UnitsFrom", errors.New("body in the coding "+truncate(coding)))
			return nil
		}
		res.Body = b
		return nil
	}
}

// truncate shortens a string of an upstream, for the log.
func truncate(s string) string { return s[:min(len(s), 40)] }

// unitsKind is the kind of a body, by the place of its units.
type unitsKind int

const (
	noUnits unitsKind = iota
	unitsInJSON
	unitsInEvents
)

func unitsIn(h http.Header) unitsKind {
	mediaType, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case mediaType == "application/json", strings.HasSuffix(mediaType, "+json"):
		return unitsInJSON
	case mediaType == "text/event-stream":
		return unitsInEvents
	}
	return noUnits
}

// unitsBody is a response body. It reads the units while the body is read.
type unitsBody struct {
	io.ReadCloser
	ctx context.Context

	mu     sync.Mutex // a body may be closed while it is read
	write  func([]byte)
	finder *rawjson.NumberFinder
	zipped *gunzip.Writer // nil if the body is not compressed
	last   float64        // the last number in the events that have ended
	done   bool
}

func (b *unitsBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	if n > 0 && !b.done {
		b.write(p[:n])
	}
	b.mu.Unlock()
	if err != nil {
		b.report()
	}
	return n, err
}

func (b *unitsBody) Close() error {
	b.report()
	return b.ReadCloser.Close()
}

// eventEnds is called at the end of an event.
func (b *unitsBody) eventEnds() {
	if x, ok := b.finder.Finish(); ok {
		b.last = x
	}
	b.finder.Reset()
}

// report reports the units, once.
func (b *unitsBody) report() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done {
		return
	}
	b.done = true
	if b.zipped != nil {
		b.zipped.Close()
	}
	b.eventEnds() // a JSON body is treated as one event
	if x := math.Ceil(b.last); x >= math.MaxInt64 {
		AddUnits(b.ctx, math.MaxInt64)
	} else if x > 0 {
		AddUnits(b.ctx, int64(x))
	}
}
