package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

// check starts everything, sends requests through all of it and prints what it asked and saw. The first
// difference from what it expected is its error.
func check(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	lines := make(logLines, 1000)
	s, err := start(ctx, slog.New(slog.NewJSONHandler(lines, nil)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	c := &checker{s, ctx, lines}

	stranger, err := certs.NewAuthority("mesh")
	if err != nil {
		return err
	}
	if _, err := issue(stranger, filepath.Join(s.dir, "stranger"), "orders"); err != nil {
		return err
	}
	const answer = "200 order 7, asked by spiffe://shop.example/gateway for alice; stock 5, asked by spiffe://shop.example/orders for alice"
	for _, step := range []struct {
		asked, expected string
		see             func() string
	}{
		{"an order, from outside", answer, func() string { return c.ask("key of alice") }},
		{"its trace ids", "one in 4 hops, and in the answer", c.trace},
		{"without a key", "401", func() string { return c.ask("") }},
		{"while stock fails twice", answer, func() string { s.failures.Store(2); return c.ask("key of alice") }},
		{"stock, by no workload", "handshake: remote error: tls: certificate required", func() string { return c.knock("") }},
		{"stock, by another authority's orders", "handshake: remote error: tls: unknown certificate authority", func() string { return c.knock("stranger/orders") }},
		{"stock, by the gateway", "403", func() string { return c.knock("gateway") }},
		{"stock, by orders", "200 stock 5, asked by spiffe://shop.example/orders for ", func() string { return c.knock("orders") }},
		{"new certificates for orders", "shown to callers and to stock", c.rotate},
		{"an order after that", answer, func() string { return c.ask("key of alice") }},
	} {
		seen := step.see()
		fmt.Fprintf(out, "%-38s %s\n", step.asked, seen)
		if seen != step.expected {
			return fmt.Errorf("%s: expected %q, saw %q", step.asked, step.expected, seen)
		}
	}
	return nil
}

type checker struct {
	*stack
	ctx   context.Context
	lines logLines
}

const traceparent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01" // of the client's own

// get sends a request with fields that would make it another's if they were believed.
func (c *checker) get(over http.RoundTripper, url, key string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(c.ctx, "GET", url, nil)
	if err != nil {
		return nil, "", err
	}
	r.Header = http.Header{"X-Api-Key": {key}, "X-Caller": {"me"}, "x_caller": {"me"}, "Traceparent": {traceparent}}
	res, err := over.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return res, fmt.Sprint(res.StatusCode), err
	}
	return res, fmt.Sprint(res.StatusCode, " ", string(body)), err
}

// ask asks the gateway for an order.
func (c *checker) ask(key string) string {
	_, seen, err := c.get(http.DefaultTransport, c.gateway+"/orders/7", key)
	if err != nil {
		return err.Error()
	}
	return seen
}

// knock asks stock's sidecar with a certificate, "" for none.
func (c *checker) knock(name string) string {
	config := &tls.Config{RootCAs: c.authority.Pool(), ServerName: hostname("stock"), NextProtos: []string{"h2"}}
	if name != "" {
		cert, err := tls.LoadX509KeyPair(filepath.Join(c.dir, name+".crt"), filepath.Join(c.dir, name+".key"))
		if err != nil {
			return err.Error()
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(c.ctx, "tcp", strings.TrimPrefix(c.stock, "https://"))
	if err != nil {
		return "handshake: " + err.Error()
	}
	defer conn.Close()
	// A server tells only after a TLS 1.3 handshake what it thinks of the certificate. In HTTP/2 it speaks
	// first, too.
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return "handshake: " + err.Error()
	}
	over := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer over.CloseIdleConnections()
	_, seen, err := c.get(over, c.stock+"/stock/cup", "")
	if err != nil {
		return err.Error()
	}
	return seen
}

// trace asks for an order and compares the trace ids of the four log lines and the answer.
func (c *checker) trace() string {
	res, _, err := c.get(http.DefaultTransport, c.gateway+"/orders/7", "key of alice")
	if err != nil {
		return err.Error()
	}
	id := res.Header.Get("X-Trace-ID")
	missing := map[string]bool{"gateway": true, "orders in": true, "orders out": true, "stock in": true}
	for len(missing) > 0 {
		select {
		case line := <-c.lines:
			if line.TraceID == id {
				delete(missing, line.Hop)
			}
		case <-time.After(30 * time.Second):
			return fmt.Sprintf("%s is not in the log of %v", id, slices.Collect(maps.Keys(missing)))
		}
	}
	if id == strings.Split(traceparent, "-")[1] {
		return "that of somebody outside"
	}
	return "one in 4 hops, and in the answer"
}

// rotate replaces the certificate of orders, and waits until new connections in both directions have the new
// one.
func (c *checker) rotate() string {
	files, err := issue(c.authority, c.dir, "orders")
	if err != nil {
		return err.Error()
	}
	want, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return err.Error()
	}
	// shown is by whom a server that is asked by orders' sidecar is asked.
	shown := make(chan *x509.Certificate, 1)
	ctx, stop := context.WithCancel(c.ctx)
	defer stop()
	url, err := c.listen(ctx, &http.Server{TLSConfig: c.hosts["stock"].server(), Handler: http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) { shown <- r.TLS.PeerCertificates[0] })})
	if err != nil {
		return err.Error()
	}
	config := &tls.Config{RootCAs: c.authority.Pool(), ServerName: hostname("orders"), GetClientCertificate: c.hosts["gateway"].asClient}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&tls.Dialer{Config: config}).DialContext(c.ctx, "tcp", strings.TrimPrefix(c.orders, "https://"))
		if err != nil {
			return err.Error()
		}
		new := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Equal(want.Leaf)
		conn.Close()
		if new {
			break
		}
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return "the old one is still shown"
		}
	}
	over := c.hosts["orders"].transport("stock")
	defer (&http.Client{Transport: over}).CloseIdleConnections()
	if _, _, err := c.get(over, url, ""); err != nil {
		return err.Error()
	}
	if !(<-shown).Equal(want.Leaf) {
		return "shown to callers alone"
	}
	return "shown to callers and to stock"
}

// logLines are the hops and trace ids of the log. A thousand of them may wait to be read.
type logLines chan logLine

type logLine struct {
	Hop     string
	TraceID string `json:"trace_id"`
}

func (l logLines) Write(line []byte) (int, error) {
	var v logLine
	if err := json.Unmarshal(line, &v); err != nil {
		return 0, err
	}
	l <- v
	return len(line), nil
}
