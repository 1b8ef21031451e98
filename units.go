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

// UnitsFrom returns a function for ProxyOptions.ModifyResponse that reads the units of an answer out of its body, and
// reports them by AddUnits when the body has ended, however it ended. pointer is a JSON pointer (RFC 6901):
//
//	gateway.Proxy(llm, &gateway.ProxyOptions{ModifyResponse: gateway.UnitsFrom("/usage/total_tokens")})
//
// A JSON body (application/json or a type that ends in +json) has the units where the pointer leads to. A stream of
// server-sent events has them in the last event whose data is JSON in which the pointer leads to a number. Fractions are
// rounded up. What is not a positive number reports nothing, and neither does another media type.
//
// The body is read as it passes: nothing is buffered, delayed or changed, and at most 64 KiB are kept. Of a stream that
// is cut off, what came before counts. So ask an upstream that reports usage only at the end of a stream to report it
// always (OpenAI: stream_options.include_usage), and let Settle count a stream without units as the estimate.
//
// A body in gzip is decompressed beside, and passed on compressed. That costs processor time in proportion to the text;
// to avoid it, delete Accept-Encoding in ProxyOptions.Rewrite. A body in another coding reports nothing, which the log
// line's remarks mention.
//
// It panics when pointer is malformed.
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

// truncate shortens what comes from an upstream, for the log.
func truncate(s string) string { return s[:min(len(s), 40)] }

// unitsKind is how a body has its units.
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

// unitsBody is a body out of which units are read.
type unitsBody struct {
	io.ReadCloser
	ctx context.Context

	mu     sync.Mutex // a body may be closed while it is read
	write  func([]byte)
	finder *rawjson.NumberFinder
	zipped *gunzip.Writer // nil when the body is not compressed
	last   float64        // of the events that have ended
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
	b.eventEnds() // of JSON, and of an event that was cut off
	if x := math.Ceil(b.last); x >= math.MaxInt64 {
		AddUnits(b.ctx, math.MaxInt64)
	} else if x > 0 {
		AddUnits(b.ctx, int64(x))
	}
}
