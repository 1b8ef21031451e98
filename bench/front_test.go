package bench

import (
	"crypto/ed25519"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
)

// BenchmarkFront measures what a front costs in CPU, over real connections on loopback: a gateway with every
// concern on, and httputil.ReverseProxy alone, each in front of the same backend. What the clients and the
// backend cost is measured without a front and taken off. Rounds are interleaved, and the median of each
// counts, since the machine is noisy: what matters is the ratio.
func BenchmarkFront(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"id":7,"name":"Ada"}`)
	}))
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	if err != nil {
		b.Fatal(err)
	}
	whole, token := wholeGateway(b, backend.URL)
	tuned := http.DefaultTransport.(*http.Transport).Clone()
	tuned.MaxIdleConnsPerHost = 256 // as the gateway's; the default of 2 would dial all the time
	fronts := []struct {
		name    string
		handler http.Handler
	}{
		{"gateway", whole},
		{"ReverseProxy", &httputil.ReverseProxy{Transport: tuned, ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(target)
			pr.SetXForwarded()
		}}},
	}
	urls := []string{backend.URL}
	for _, f := range fronts {
		s := httptest.NewServer(f.handler)
		defer s.Close()
		urls = append(urls, s.URL)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()

	const rounds, clients, each = 15, 16, 100
	costs := make([][]float64, len(urls))
	for b.Loop() {
		for range rounds {
			for i, u := range urls {
				costs[i] = append(costs[i], cpu(func() { load(b, client, u, token, clients, each) })/(clients*each))
			}
		}
	}
	median := func(i int) float64 {
		slices.Sort(costs[i])
		return costs[i][len(costs[i])/2]
	}
	direct := median(0)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(direct/1e3, "direct-µs/req")
	for i, f := range fronts {
		b.ReportMetric((median(i+1)-direct)/1e3, f.name+"-µs/req")
	}
	b.ReportMetric((median(1)-direct)/(median(2)-direct), "gateway/ReverseProxy")
}

func load(b *testing.B, client *http.Client, base, token string, clients, each int) {
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				r, _ := http.NewRequest("GET", base+"/users/7?fields=name", nil)
				r.Header = http.Header{"Authorization": {"Bearer " + token}, "Accept": {"application/json"}, "Accept-Language": {"en"}, "Cookie": {"a=b"}}
				res, err := client.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != 200 {
					b.Errorf("status %d", res.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
}

// cpu is the processor time in nanoseconds that this process spends in f, user and system.
func cpu(f func()) float64 {
	spent := func() float64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			panic(err)
		}
		return float64(u.Utime.Nano() + u.Stime.Nano())
	}
	before := spent()
	f()
	return spent() - before
}

// wholeGateway is a gateway with every concern on, and a token that it accepts.
func wholeGateway(b *testing.B, backend string) (http.Handler, string) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "scope": "read",
	}).SignedString(private)
	if err != nil {
		b.Fatal(err)
	}
	tokens := gateway.NewJWT(gateway.StaticKey(public), gateway.JWTOptions{Issuer: "https://id.example", Audience: "api", Algorithms: []string{"EdDSA"}})
	users := gateway.NewUpstream("users", gateway.MustTargets(backend), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("users", nil),
		Retry:   gateway.RetryOptions{Attempts: 3},
	})
	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}),
		gateway.RateLimit(gateway.NewTokenBucket(1e9, 1e9, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
		gateway.RateLimit(gateway.NewTokenBucket(1e9, 1e9, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "caller"}),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil), gateway.RequireScopes("read"))
	return &rt, token
}
