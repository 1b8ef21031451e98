package h1

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// rawServer answers each request without parsing it: whenever it has read the end of one.
func rawServer(b *testing.B, bodyLength int, answer []byte) string {
	return serve(b, func(_ int, c net.Conn) {
		buf := make([]byte, 64<<10)
		have, need := 0, 0
		for {
			n, err := c.Read(buf[have:])
			if err != nil {
				return
			}
			have += n
			if need == 0 {
				if i := bytes.Index(buf[:have], []byte("\r\n\r\n")); i >= 0 {
					need = i + 4 + bodyLength
				}
			}
			if need > 0 && have >= need {
				if _, err := c.Write(answer); err != nil {
					return
				}
				have, need = 0, 0
			}
		}
	})
}

func benchAnswer(size int) []byte {
	return []byte("HTTP/1.1 200 OK\r\nServer: nginx/1.24.0\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json\r\n" +
		"Content-Length: " + strconv.Itoa(size) + "\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: keep-alive\r\n" +
		"ETag: \"65920080-400\"\r\nAccept-Ranges: bytes\r\n\r\n" + strings.Repeat("x", size))
}

// BenchmarkRoundTrip compares this transport with net/http's, configured as for a proxy.
func BenchmarkRoundTrip(b *testing.B) {
	std := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1024, ReadBufferSize: bufferSize, WriteBufferSize: bufferSize}
	defer std.CloseIdleConnections()
	own := New(&Options{InlineBody: 16 << 10})
	defer own.CloseIdleConnections()
	body := bytes.Repeat([]byte("x"), 4<<10)
	for _, w := range []struct {
		name   string
		method string
		size   int
	}{{"GET1K", "GET", 1 << 10}, {"GET64K", "GET", 64 << 10}, {"GET1M", "GET", 1 << 20}, {"POST4K", "POST", 1 << 10}} {
		sent := 0
		if w.method == "POST" {
			sent = len(body)
		}
		addr := rawServer(b, sent, benchAnswer(w.size))
		for _, rt := range []struct {
			name string
			http.RoundTripper
		}{{"h1", own}, {"nethttp", std}} {
			b.Run(w.name+"/"+rt.name, func(b *testing.B) {
				b.ReportAllocs()
				buf := make([]byte, 32<<10)
				req := newRequest(b, w.method, "http://"+addr+"/users/7?fields=name", nil)
				req.Header = http.Header{"Accept": {"application/json"}, "Accept-Language": {"en"}, "User-Agent": {"Mozilla/5.0"},
					"Cookie": {"a=b"}, "X-Forwarded-For": {"10.0.0.1"}, "X-Trace-Id": {"0af7651916cd43dd8448eb211c80319c"}}
				for b.Loop() {
					if sent > 0 {
						req.Body, req.ContentLength = &plainBody{b: body}, int64(sent)
					}
					res, err := rt.RoundTrip(req)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, buf); err != nil {
						b.Fatal(err)
					}
					res.Body.Close()
				}
			})
		}
	}
}

// plainBody is a body whose type tells the transport nothing.
type plainBody struct {
	b []byte
	i int
}

func (p *plainBody) Read(b []byte) (int, error) {
	n := copy(b, p.b[p.i:])
	if p.i += n; p.i == len(p.b) {
		return n, io.EOF
	}
	return n, nil
}
func (p *plainBody) Close() error { return nil }
