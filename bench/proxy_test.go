package bench

import (
	"bytes"
	"crypto/ed25519"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
)

// quietBackend answers every request on loopback with body and allocates nothing for it, so that the allocations that a
// benchmark counts are the proxy's and its transport's.
func quietBackend(b *testing.B, body string) (addr string) {
	l := mustBe(net.Listen("tcp", "127.0.0.1:0"))
	b.Cleanup(func() { l.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	end := []byte("\r\n\r\n")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 16<<10)
				for have := 0; ; {
					n, err := c.Read(buf[have:])
					if err != nil {
						return
					}
					if have += n; bytes.HasSuffix(buf[:have], end) {
						have = 0
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// BenchmarkProxy forwards a GET over loopback to a backend that allocates nothing: the allocations are those of a proxied
// request without net/http's server. Its times are mostly the kernel's; bench/e2e measures those better.
func BenchmarkProxy(b *testing.B) {
	addr := quietBackend(b, `{"text":"`+strings.Repeat("x", 1024-11)+`"}`)
	public, request := signedRequest(b)
	for _, peer := range []struct {
		name string
		h    http.Handler
	}{
		{"gateway", gateway.Proxy(gateway.NewUpstream("users", gateway.MustTargets("http://"+addr), nil), nil)},
		{"gateway-all", everyConcern("http://"+addr, public)},
		{"ReverseProxy", tunedReverseProxy(addr)},
	} {
		b.Run(peer.name, func(b *testing.B) {
			checked := httptest.NewRecorder()
			if peer.h.ServeHTTP(checked, request); checked.Code != 200 || checked.Body.Len() != 1024 {
				b.Fatalf("status %d and %d bytes", checked.Code, checked.Body.Len())
			}
			serve(b, peer.h, request)
		})
	}
}

// BenchmarkThroughput forwards GETs of 32 callers at once. With -cpu 1,2 it shows whether the rate grows with the processors
// as ReverseProxy's does. The backend runs on the same processors.
func BenchmarkThroughput(b *testing.B) {
	addr := quietBackend(b, `{"text":"`+strings.Repeat("x", 1024-11)+`"}`)
	public, request := signedRequest(b)
	for _, peer := range []struct {
		name string
		h    http.Handler
	}{
		{"gateway", gateway.Proxy(gateway.NewUpstream("users", gateway.MustTargets("http://"+addr), nil), nil)},
		{"gateway-all", everyConcern("http://"+addr, public)},
		{"ReverseProxy", tunedReverseProxy(addr)},
	} {
		b.Run(peer.name, func(b *testing.B) {
			b.SetParallelism(32 / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				w := &sink{make(http.Header)}
				for pb.Next() {
					clear(w.header)
					peer.h.ServeHTTP(w, request.Clone(request.Context()))
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}

// signedRequest returns a GET with a token, and the key that verifies it.
func signedRequest(b *testing.B) (ed25519.PublicKey, *http.Request) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	token := mustBe(jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": issuer, "aud": audience, "sub": "alice", "scope": "read", "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(private))
	request := httptest.NewRequest("GET", "/users/7?fields=name", nil)
	request.Header = http.Header{
		"Authorization": {"Bearer " + token}, "Accept": {"application/json"}, "Accept-Language": {"en"}, "Accept-Encoding": {"gzip, br"},
		"Cookie": {"theme=dark; lang=en"}, "User-Agent": {"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
	}
	return public, request
}

func everyConcern(target string, key any) http.Handler {
	tokens := gateway.NewJWT(gateway.StaticKey(key), gateway.JWTOptions{Issuer: issuer, Audience: audience, Algorithms: []string{"EdDSA"}})
	users := gateway.NewUpstream("users", gateway.MustTargets(target), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("users", nil),
		Retry:   gateway.RetryOptions{Attempts: 3},
	})
	rt := new(gateway.Router)
	rt.Use(
		gateway.Observe(nil),
		gateway.RateLimit(gateway.NewTokenBucket(plenty, plenty, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
		gateway.RateLimit(gateway.NewTokenBucket(plenty, plenty, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "caller"}),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil), gateway.RequireScopes("read"))
	return rt
}

// tunedReverseProxy has pooled copy buffers and idle connections enough, and neither compresses nor logs.
func tunedReverseProxy(addr string) http.Handler {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.DisableCompression, t.MaxIdleConns, t.MaxIdleConnsPerHost = nil, true, 0, 1024
	to := &url.URL{Scheme: "http", Host: addr}
	return &httputil.ReverseProxy{
		Transport:  t,
		BufferPool: new(copyBuffers),
		ErrorLog:   log.New(io.Discard, "", 0),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(to)
			pr.SetXForwarded()
		},
	}
}

type copyBuffers struct{ pool sync.Pool }

func (c *copyBuffers) Get() []byte {
	if p, ok := c.pool.Get().(*[32 << 10]byte); ok {
		return p[:]
	}
	return make([]byte, 32<<10)
}

func (c *copyBuffers) Put(p []byte) { c.pool.Put((*[32 << 10]byte)(p)) }
