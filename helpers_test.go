package gateway_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// This file has what several test files share: asking a handler, handlers and RoundTrippers that answer, servers and
// raw connections, logs, panics, identities and tokens. What one file alone needs is in that file.

// must returns v and panics when err is not nil.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// patience is how long a test waits for what ought to happen at once, on a machine that is slow and busy too.
const patience = 30 * time.Second

// deadline is for what ought to happen at once.
func deadline() time.Time { return time.Now().Add(patience) }

// panicValue returns what f panics with, or nil.
func panicValue(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

// panicOf returns the text of what f panics with, or "".
func panicOf(f func()) string {
	if v := panicValue(f); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}

// settle waits until no goroutine of an earlier test is left, with what it has on the heap. A test that measures memory
// begins with it.
func settle(t *testing.T) {
	t.Helper()
	if left := gatewaytest.LeftBehind(patience); left != "" {
		t.Fatalf("goroutines of an earlier test:\n%s", left)
	}
}

// heapInUse returns the bytes on the heap that are in use, after a collection.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what the first left to finalizers
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// waitGoroutines waits until no more goroutines run than before.
func waitGoroutines(t *testing.T, before int) {
	t.Helper()
	for late := deadline(); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(late) {
			buf := make([]byte, 64<<10)
			t.Fatalf("%d goroutines, before %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// crowd runs subtests that mostly wait, eight at a time. With t.Parallel, it would be as many as there are processors.
type crowd struct {
	t     *testing.T
	slots chan bool
	all   sync.WaitGroup
}

func newCrowd(t *testing.T) *crowd { return &crowd{t: t, slots: make(chan bool, 8)} }

// run starts a subtest as soon as there is room.
func (c *crowd) run(name string, f func(t *testing.T)) {
	c.slots <- true
	c.all.Go(func() {
		defer func() { <-c.slots }()
		c.t.Run(name, f)
	})
}

// wait waits for the end of all.
func (c *crowd) wait() { c.all.Wait() }

// Asking a handler without a connection.

// recorded serves r with h and returns what h wrote. A nil r is a GET of "/".
func recorded(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	if r == nil {
		r = httptest.NewRequest("GET", "/", nil)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// ask serves a request without fields or body with h and returns the response.
func ask(h http.Handler, method, target string) *http.Response {
	return recorded(h, httptest.NewRequest(method, target, nil)).Result()
}

// bodyOf reads the body of res.
func bodyOf(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// problem is the body of a refusal.
type problem struct {
	Type    string `json:"type"`
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Detail  string `json:"detail"`
	TraceID string `json:"trace_id"`
}

// readProblem reads the body of res, which must be a problem.
func readProblem(t *testing.T, res *http.Response) problem {
	t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("body: %v", err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Fatalf("Content-Type %q, body %q; want a problem", ct, body)
	}
	var p problem
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("body %q: %v", body, err)
	}
	if p.Status != res.StatusCode {
		t.Errorf("problem says %d, status line %d", p.Status, res.StatusCode)
	}
	return p
}

// discardWriter is a ResponseWriter that keeps nothing of what is written. Benchmarks clear its header themselves.
type discardWriter struct{ header http.Header }

func (w discardWriter) Header() http.Header         { return w.header }
func (w discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w discardWriter) WriteHeader(int)             {}

// Handlers and RoundTrippers that answer.

// text returns a handler that answers with s.
func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s) })
}

// silent is a handler that does nothing: the answer is 200 without a body.
var silent = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

// named returns a handler that answers with name and the path values asked for.
func named(name string, values ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, name)
		for _, v := range values {
			fmt.Fprintf(w, " %s=%s", v, r.PathValue(v))
		}
	})
}

// mark returns a middleware that adds name to the field Via of the response before it calls the next handler.
func mark(name string) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Via", name)
			next.ServeHTTP(w, r)
		})
	}
}

// roundTrip is a RoundTripper function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answered returns a response to r whose body has no known length.
func answered(r *http.Request, status int, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: body, Request: r, ContentLength: -1}
}

// upgraded returns the 101 to r with which the target agrees to protocol x. conn is the connection.
func upgraded(r *http.Request, conn io.ReadCloser) *http.Response {
	res := answered(r, http.StatusSwitchingProtocols, conn)
	res.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}
	return res
}

// offersUpgrade returns r with an offer of protocol x.
func offersUpgrade(r *http.Request) *http.Request {
	r.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}
	return r
}

// answeredText returns a response to r with a body of known length. A nil header is an empty one.
func answeredText(r *http.Request, status int, body string, header http.Header) *http.Response {
	res := answered(r, status, io.NopCloser(strings.NewReader(body)))
	res.ContentLength = int64(len(body))
	if header != nil {
		res.Header = header
	}
	return res
}

// answersJSON returns a RoundTripper that answers every request with status and, but for a 204, with body.
func answersJSON(status int, body string) http.RoundTripper {
	return gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			io.WriteString(w, body)
		}
	}))
}

// recordHeader returns a RoundTripper that keeps the header of the last request in to, and answers with what else the
// request had, as JSON.
func recordHeader(to *http.Header) http.RoundTripper {
	return gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*to = r.Header
		b, _ := io.ReadAll(r.Body)
		json.NewEncoder(w).Encode(r.Method + " " + r.RequestURI + " " + r.Host + " " + string(b))
	}))
}

// has reports whether h has a field of exactly this spelling.
func has(h http.Header, name string) bool {
	_, ok := h[name]
	return ok
}

// Servers and clients.

// serve runs h on a real listener.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// get sends a GET with http.DefaultClient.
func get(t *testing.T, url string) *http.Response {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// newRequest returns a client's request, which ends with the test.
func newRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// askServer runs h on a real listener, sends it one GET with header, whose names are sent as they are, and returns the
// response and its body.
func askServer(t *testing.T, h http.Handler, header http.Header) (*http.Response, string) {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	r := newRequest(t, "GET", s.URL+"/", nil)
	maps.Copy(r.Header, header)
	res, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res, bodyOf(t, res)
}

// Logs.

// logged returns a logger that calls f with each line's attributes, "message" and "level".
func logged(f func(line map[string]string)) *slog.Logger { return slog.New(lineFunc(f)) }

// lineFunc is the slog.Handler of logged.
type lineFunc func(line map[string]string)

func (f lineFunc) Enabled(context.Context, slog.Level) bool { return true }
func (f lineFunc) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f lineFunc) WithGroup(string) slog.Handler            { return f }
func (f lineFunc) Handle(_ context.Context, r slog.Record) error {
	line := map[string]string{"message": r.Message, "level": r.Level.String()}
	r.Attrs(func(a slog.Attr) bool { line[a.Key] = a.Value.String(); return true })
	f(line)
	return nil
}

// journal receives the lines of a log.
type journal chan map[string]string

// logger returns a logger whose lines go to j.
func (j journal) logger() *slog.Logger { return logged(func(line map[string]string) { j <- line }) }

// next returns the line of the next request that ends.
func (j journal) next(t *testing.T) map[string]string {
	t.Helper()
	select {
	case line := <-j:
		return line
	case <-time.After(patience):
		t.Fatal("nothing was logged")
		return nil
	}
}

// of returns the line of the next request for path that ends, and leaves out those for others.
func (j journal) of(t *testing.T, path string) map[string]string {
	t.Helper()
	for {
		if line := j.next(t); line["path"] == path {
			return line
		}
	}
}

// observed returns an Observe and the journal of its access log.
func observed() (journal, gateway.Middleware) {
	j := make(journal, 100)
	return j, gateway.Observe(&gateway.ObserveOptions{Logger: j.logger()})
}

// captureDefaultLog returns a buffer for what slog.Default logs until the test ends.
func captureDefaultLog(t *testing.T) *lockedBuffer {
	b := new(lockedBuffer)
	before, output, flags := slog.Default(), log.Writer(), log.Flags()
	slog.SetDefault(slog.New(slog.NewTextHandler(b, nil)))
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(output) // SetDefault has redirected package log too
		log.SetFlags(flags)
	})
	return b
}

// lockedBuffer is a buffer that several goroutines may use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Identities and tokens.

// fixedAuthenticator returns an Authenticator that answers every request with id and err.
func fixedAuthenticator(id *gateway.Identity, err error) gateway.Authenticator {
	return gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) { return id, err })
}

// withIdentity returns a middleware that makes id the caller of every request, without Auth.
func withIdentity(id *gateway.Identity) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), id)))
		})
	}
}

// caller answers with the subject in its context, and with every field whose name resembles X-User-ID.
var caller = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	id, ok := gateway.IdentityFrom(r.Context())
	if ok {
		io.WriteString(w, id.Subject)
	}
	io.WriteString(w, "|")
	for name, values := range r.Header {
		if strings.Contains(strings.ToLower(name), "user") && name != "User-Agent" {
			io.WriteString(w, name+"="+strings.Join(values, ","))
		}
	}
})

const (
	testIssuer   = "https://id.example"
	testAudience = "api"
)

// Keys take long to generate, so each is generated once.
var (
	testRSA = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	testEC  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	testEd  = sync.OnceValue(func() ed25519.PrivateKey {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return must(key, err)
	})
	testSecret = []byte("a secret of exactly sixty-four bytes, so that HS512 takes it too.")
)

// claimSet returns the claims of a good token, with changes. A nil value removes the claim.
func claimSet(changes map[string]any) map[string]any {
	now := time.Now()
	c := map[string]any{
		"iss": testIssuer, "aud": testAudience, "sub": "user-1", "scope": "read pay",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for name, v := range changes {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	return c
}

// segment encodes a part of a token.
func segment(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signRaw signs header and payload as they are.
func signRaw(alg string, key any, header, payload []byte) string {
	text := segment(header) + "." + segment(payload)
	sig := must(jwt.GetSigningMethod(alg).Sign(text, key))
	return text + "." + segment(sig)
}

// sign makes a token whose header has alg and the members of header.
func sign(alg string, key any, header, claims map[string]any) string {
	h := map[string]any{"alg": alg}
	maps.Copy(h, header)
	return signRaw(alg, key, must(json.Marshal(h)), must(json.Marshal(claims)))
}

// edToken returns a good token with changes to its claims, which edJWT accepts.
func edToken(changes map[string]any) string {
	return sign("EdDSA", testEd(), map[string]any{"typ": "JWT"}, claimSet(changes))
}

// jwk returns a public key as a JSON Web Key. members adds or replaces members.
func jwk(kid string, key any, members map[string]any) map[string]any {
	m := map[string]any{"kid": kid}
	switch k := key.(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", segment(k.N.Bytes()), segment(big.NewInt(int64(k.E)).Bytes())
	case *ecdsa.PublicKey:
		point := must(k.Bytes())
		size := (len(point) - 1) / 2
		m["kty"], m["crv"] = "EC", k.Curve.Params().Name
		m["x"], m["y"] = segment(point[1:1+size]), segment(point[1+size:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", segment(k)
	case []byte:
		m["kty"], m["k"] = "oct", segment(k)
	}
	for name, v := range members {
		m[name] = v
	}
	return m
}

// keySet returns a JWK Set of keys.
func keySet(keys ...map[string]any) string {
	return string(must(json.Marshal(map[string]any{"keys": keys})))
}

// edPublic returns the key that verifies what edToken signs.
func edPublic() ed25519.PublicKey { return testEd().Public().(ed25519.PublicKey) }

// newJWT returns a JWT for tokens that are signed with EdDSA, with changed options if change is not nil.
func newJWT(keys gateway.KeySource, change func(*gateway.JWTOptions)) *gateway.JWT {
	o := gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}}
	if change != nil {
		change(&o)
	}
	return gateway.NewJWT(keys, o)
}

// withBearer returns a request that carries token.
func withBearer(token string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// edJWT is newJWT with the key of edToken.
func edJWT(change func(*gateway.JWTOptions)) *gateway.JWT {
	return newJWT(gateway.StaticKey(edPublic()), change)
}

// mustJSON encodes v.
func mustJSON(v any) []byte { return must(json.Marshal(v)) }

// claimSetWithNull returns the claims of a good token, with some that are null.
func claimSetWithNull(names ...string) map[string]any {
	c := claimSet(nil)
	for _, name := range names {
		c[name] = nil
	}
	return c
}
