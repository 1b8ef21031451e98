package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/seed-96248d0c/gateway"
)

// This file has a provider that is not ours: the example server of github.com/zitadel/oidc/v3. A user logs
// in by the code flow, and the gateway accepts what the provider issues: JSON Web Tokens, and opaque tokens
// by introspection.

// The two clients at the provider. Their access tokens are meant for themselves, as the example server has
// it.
const (
	jwtClient    = "app-jwt"    // gets JSON Web Tokens
	opaqueClient = "app-opaque" // gets opaque tokens
	callback     = "http://127.0.0.1/callback"
)

// foreignGateway accepts both kinds of tokens on one Authorization field.
func foreignGateway(ctx context.Context, issuer, resource string) (http.Handler, error) {
	tokens, err := gateway.NewOIDC(ctx, issuer, gateway.OIDCOptions{
		JWT:  gateway.JWTOptions{Audience: jwtClient, Algorithms: []string{"ES256"}},
		Keys: gateway.JWKSOptions{MaxAge: 200 * time.Millisecond, MinInterval: 100 * time.Millisecond}, // keys change fast here
	})
	if err != nil {
		return nil, err
	}
	opaque, err := gateway.NewIntrospection(issuer+"oauth/introspect", gateway.IntrospectionOptions{
		ClientID: opaqueClient, ClientSecret: clientSecret, CacheFor: 100 * time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	notes := gateway.NewUpstream("notes", gateway.MustTargets(resource), nil)
	rt := new(gateway.Router)
	rt.Use(gateway.Auth(gateway.FirstOf(tokens, opaque), nil))
	rt.Handle("GET /notes", gateway.Proxy(notes, nil))
	return rt, nil
}

// foreignStorage is the example server's storage, with keys that can be rotated and a client that gets JSON
// Web Tokens.
type foreignStorage struct {
	*storage.Storage

	mu   sync.Mutex
	keys []*foreignKey // the last one signs
}

// foreignKey is a signing key, and published it is its public half.
type foreignKey struct {
	id        string
	key       *ecdsa.PrivateKey
	published bool
}

func (k *foreignKey) ID() string                                  { return k.id }
func (k *foreignKey) Algorithm() jose.SignatureAlgorithm          { return jose.ES256 }
func (k *foreignKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k *foreignKey) Use() string                                 { return "sig" }
func (k *foreignKey) Key() any {
	if k.published {
		return &k.key.PublicKey
	}
	return k.key
}

// rotate begins to sign with a new key. The old ones stay published if keep is true.
func (s *foreignStorage) rotate(keep bool) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !keep {
		s.keys = nil
	}
	s.keys = append(s.keys, &foreignKey{id: rand.Text(), key: key})
	return nil
}

func (s *foreignStorage) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[len(s.keys)-1], nil
}

func (s *foreignStorage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

func (s *foreignStorage) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var set []op.Key
	for _, k := range s.keys {
		set = append(set, &foreignKey{id: k.id, key: k.key, published: true})
	}
	return set, nil
}

func (s *foreignStorage) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	client, err := s.Storage.GetClientByClientID(ctx, id)
	if err != nil || id != jwtClient {
		return client, err
	}
	return selfContained{client}, nil
}

// selfContained is a client that gets JSON Web Tokens.
type selfContained struct{ op.Client }

func (selfContained) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

// foreign is the provider, the gateway in front of the resource server, and a user's browser.
type foreign struct {
	*foreignStorage
	issuer, notes string
	http          *http.Client // follows redirects to the provider alone
}

// newForeign starts the provider and the gateway. close stops both.
func newForeign(ctx context.Context) (f *foreign, close func(), err error) {
	var closers []func()
	close = func() {
		for _, c := range closers {
			c()
		}
	}
	defer func() {
		if err != nil {
			close()
		}
	}()
	start := func(h http.Handler) string {
		if err != nil {
			return ""
		}
		var address string
		var stop func()
		if address, stop, err = listen(h); err == nil {
			closers = append(closers, stop)
		}
		return address
	}
	f = &foreign{}
	var handler http.Handler
	base := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	resource := start(http.HandlerFunc(notes))
	if err != nil {
		return nil, nil, err
	}
	f.issuer = base + "/"
	f.foreignStorage = &foreignStorage{Storage: storage.NewStorageWithClients(storage.NewUserStore(f.issuer), map[string]*storage.Client{
		jwtClient:    storage.WebClient(jwtClient, clientSecret, callback),
		opaqueClient: storage.WebClient(opaqueClient, clientSecret, callback),
	})}
	if err = f.rotate(true); err != nil {
		return nil, nil, err
	}
	handler = exampleop.SetupServer(f.issuer, f.foreignStorage, nil, false)
	front, err := foreignGateway(ctx, f.issuer, resource)
	if err != nil {
		return nil, nil, err
	}
	f.notes = start(front) + "/notes"
	transport := new(http.Transport)
	closers = append(closers, transport.CloseIdleConnections)
	f.http = &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return f, close, err
}

// issued are the tokens that the provider issues after a login.
type issued struct {
	Access  string `json:"access_token"`
	ID      string `json:"id_token"`
	Refresh string `json:"refresh_token"`
}

// login logs the user in by the code flow (OpenID Connect Core 1.0 section 3.1): the client sends the
// browser to the provider, the user gives name and password there, and the client gets a code that it
// exchanges for tokens.
func (f *foreign) login(ctx context.Context, client string) (tokens issued, err error) {
	query := url.Values{
		"client_id": {client}, "redirect_uri": {callback}, "response_type": {"code"},
		"scope": {"openid profile email offline_access"}, "state": {"s"}, "nonce": {rand.Text()}, "prompt": {"consent"},
	}
	page, err := f.send(ctx, http.MethodGet, f.issuer+"auth?"+query.Encode(), nil, "")
	if err != nil {
		return tokens, err
	}
	request := page.Request.URL.Query().Get("authRequestID")
	back, err := f.send(ctx, http.MethodPost, f.issuer+"login/username", url.Values{
		"id": {request}, "username": {"test-user2"}, "password": {"verysecure"},
	}, "")
	if err != nil {
		return tokens, err
	}
	to, err := back.Location()
	if err != nil {
		return tokens, fmt.Errorf("no code after the login: %s", back.Status)
	}
	return f.exchange(ctx, client, url.Values{
		"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {callback},
	})
}

// exchange asks the token endpoint (RFC 6749 section 3.2).
func (f *foreign) exchange(ctx context.Context, client string, form url.Values) (tokens issued, err error) {
	res, err := f.send(ctx, http.MethodPost, f.issuer+"oauth/token", form, client)
	if err != nil {
		return tokens, err
	}
	err = json.NewDecoder(res.Body).Decode(&tokens)
	if res.StatusCode != http.StatusOK || tokens.Access == "" {
		return tokens, errors.Join(err, fmt.Errorf("no tokens: %s", res.Status))
	}
	return tokens, err
}

// send sends a request and reads the whole answer. A client that is not "" authenticates by its secret.
func (f *foreign) send(ctx context.Context, method, to string, form url.Values, client string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, to, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if client != "" {
		r.SetBasicAuth(client, clientSecret)
	}
	res, err := f.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	res.Body = io.NopCloser(strings.NewReader(string(body)))
	return res, err
}

// ask asks the gateway for the notes with a token and returns the status.
func (f *foreign) ask(ctx context.Context, token string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.notes, nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := f.http.Do(r)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode == http.StatusOK && string(body) != "the notes of id2\n" {
		return 0, fmt.Errorf("the answer is %q", body)
	}
	return res.StatusCode, err
}

// runForeign logs in, tries everything that the provider issues, rotates the key, and prints what came of it.
func runForeign(ctx context.Context, out io.Writer) error {
	f, close, err := newForeign(ctx)
	if err != nil {
		return err
	}
	defer close()
	wrong := 0
	try := func(what, token string, want int) {
		got, err := f.ask(ctx, token)
		withdrawn := strings.Contains(what, "withdrawn") || strings.Contains(what, "revoked")
		for late := time.Now().Add(5 * time.Second); withdrawn && err == nil && got != want && time.Now().Before(late); {
			pause(ctx, 20*time.Millisecond) // it is accepted until the key set or the endpoint is asked again
			got, err = f.ask(ctx, token)
		}
		verdict := "as it must be"
		if err != nil || got != want {
			wrong++
			verdict = fmt.Sprintf("WRONG: want %d, %v", want, err)
		}
		fmt.Fprintf(out, "%-52s %d  %s\n", what, got, verdict)
	}

	app, err := f.login(ctx, jwtClient)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	try("JWT access token", app.Access, 200)
	try("JWT access token, again", app.Access, 200)
	try("its ID token", app.ID, 401)
	try("its refresh token", app.Refresh, 401)
	try("JWT access token, signature changed", app.Access[:len(app.Access)-4]+"AAAA", 401)

	other, err := f.login(ctx, opaqueClient)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	try("opaque access token", other.Access, 200)
	try("opaque access token, again", other.Access, 200)
	try("its ID token", other.ID, 401)
	try("its refresh token", other.Refresh, 401)
	try("opaque access token, changed", "A"+other.Access[1:], 401)

	again, err := f.exchange(ctx, opaqueClient, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {other.Refresh}})
	if err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	try("opaque access token from a refresh", again.Access, 200)
	if _, err := f.send(ctx, http.MethodPost, f.issuer+"revoke", url.Values{"token": {again.Access}}, opaqueClient); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	try("opaque access token, revoked", again.Access, 401)

	if err := f.rotate(true); err != nil {
		return err
	}
	next, err := f.login(ctx, jwtClient)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	try("JWT of a key that was published just now", next.Access, 200)
	try("JWT of the key before, still published", app.Access, 200)
	if err := f.rotate(false); err != nil {
		return err
	}
	try("JWT of a key that was withdrawn", app.Access, 401)
	try("JWT of the other key that was withdrawn", next.Access, 401)
	if app, err = f.login(ctx, jwtClient); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	try("JWT of the new key", app.Access, 200)
	if wrong > 0 {
		return fmt.Errorf("%d answers are wrong", wrong)
	}
	return nil
}
