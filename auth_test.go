package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// asks serves h on a real listener and sends it one request with header.
func asks(t *testing.T, h http.Handler, header http.Header) (*http.Response, string) {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	r := must(http.NewRequest("GET", s.URL, nil))
	for name, values := range header {
		r.Header[name] = values // as they are, not in canonical form
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp, string(must(io.ReadAll(resp.Body)))
}

func fixed(id *gateway.Identity, err error) gateway.Authenticator {
	return gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) { return id, err })
}

// caller answers with whom it sees: by the context, and in every field that looks like X-User-ID.
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

func TestAuthAnswers(t *testing.T) {
	tokens := edJWT(nil)
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	var nobody gateway.Authenticator = fixed(nil, gateway.ErrNoCredentials)
	for name, tt := range map[string]struct {
		a         gateway.Authenticator
		opts      *gateway.AuthOptions
		header    http.Header
		status    int
		challenge string
		body      string // of a 200
	}{
		"good":                  {tokens, nil, bearer(edToken(nil)), 200, "", "user-1|X-User-Id=user-1"},
		"good and optional":     {tokens, &gateway.AuthOptions{Optional: true}, bearer(edToken(nil)), 200, "", "user-1|X-User-Id=user-1"},
		"none":                  {tokens, nil, nil, 401, "Bearer", ""},
		"none, realm":           {tokens, &gateway.AuthOptions{Realm: `a "b" \c`}, nil, 401, `Bearer realm="a \"b\" \\c"`, ""},
		"none and optional":     {tokens, &gateway.AuthOptions{Optional: true}, nil, 200, "", "|"},
		"bad":                   {tokens, nil, bearer("x"), 401, `Bearer error="invalid_token"`, ""},
		"bad, realm":            {tokens, &gateway.AuthOptions{Realm: "api"}, bearer("x"), 401, `Bearer realm="api", error="invalid_token"`, ""},
		"bad and optional":      {tokens, &gateway.AuthOptions{Optional: true}, bearer("x"), 401, `Bearer error="invalid_token"`, ""},
		"expired":               {tokens, nil, bearer(edToken(map[string]any{"exp": 1})), 401, `Bearer error="invalid_token"`, ""},
		"nobody without error":  {fixed(nil, nil), nil, nil, 401, `Bearer error="invalid_token"`, ""},
		"nobody, optional":      {fixed(nil, nil), &gateway.AuthOptions{Optional: true}, nil, 401, `Bearer error="invalid_token"`, ""},
		"cannot tell":           {fixed(nil, &gateway.Error{Status: 503}), nil, nil, 503, "", ""},
		"cannot tell, optional": {fixed(nil, &gateway.Error{Status: 503}), &gateway.AuthOptions{Optional: true}, nil, 503, "", ""},
		"an error of its own":   {fixed(nil, errors.New("db password is hunter2")), nil, nil, 500, "", ""},
		"a 401 of its own": {fixed(nil, &gateway.Error{Status: 401, Header: http.Header{"Www-Authenticate": {"Negotiate"}}}),
			nil, nil, 401, "Negotiate", ""},
		"a 401 without challenge": {fixed(nil, &gateway.Error{Status: 401}), nil, nil, 401, `Bearer error="invalid_token"`, ""},
		"report only, good":       {tokens, &gateway.AuthOptions{ReportOnly: true}, bearer(edToken(nil)), 200, "", "user-1|X-User-Id=user-1"},
		"report only, bad":        {tokens, &gateway.AuthOptions{ReportOnly: true}, bearer("x"), 200, "", "|"},
		"report only, none":       {nobody, &gateway.AuthOptions{ReportOnly: true}, nil, 200, "", "|"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := asks(t, gateway.Auth(tt.a, tt.opts)(caller), tt.header)
			if resp.StatusCode != tt.status || resp.Header.Get("WWW-Authenticate") != tt.challenge {
				t.Errorf("status %d, challenge %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
			}
			if tt.status == 200 && body != tt.body {
				t.Errorf("body %q, want %q", body, tt.body)
			}
			if tt.status != 200 && (resp.Header.Get("Content-Type") != "application/problem+json" || strings.Contains(body, "hunter2") || strings.Contains(body, "detail")) {
				t.Errorf("%s %q", resp.Header.Get("Content-Type"), body)
			}
		})
	}
}

func TestAuthSubject(t *testing.T) {
	for subject, ok := range map[string]bool{
		"user-1": true, "a b": true, "Jürgen": true, "auth0|5f7c8ec7": true, "日本": true,
		"": false, " a": false, "a ": false, "a\tb": false, "a\r\nX-Admin: 1": false, "a\nb": false, "a\x00": false,
		"a\x7f": false, "a\u0085b": false, "a\u00a0": false, "\u2003a": false, "a\xff": false,
	} {
		h := gateway.Auth(fixed(&gateway.Identity{Subject: subject}, nil), &gateway.AuthOptions{Optional: true})(caller)
		resp, _ := asks(t, h, nil)
		if (resp.StatusCode == 200) != ok || !ok && resp.StatusCode != 401 {
			t.Errorf("subject %q: status %d", subject, resp.StatusCode)
		}
	}
}

func TestAuthRemovesForgedFields(t *testing.T) {
	forged := http.Header{
		"X-User-Id": {"admin"}, "X_user_id": {"admin"}, "x.user.id": {"admin"}, "xuserid": {"admin"},
		"X-USER_ID": {"admin"}, "X-User-Ids": {"kept"},
	}
	optional := &gateway.AuthOptions{Optional: true}
	for name, tt := range map[string]struct {
		a    gateway.Authenticator
		opts *gateway.AuthOptions
		want string
	}{
		"anonymous":     {fixed(nil, gateway.ErrNoCredentials), optional, "|X-User-Ids=kept"},
		"report only":   {fixed(nil, gateway.ErrUnauthenticated), &gateway.AuthOptions{ReportOnly: true}, "|X-User-Ids=kept"},
		"authenticated": {fixed(&gateway.Identity{Subject: "u"}, nil), nil, "u|X-User-Id=u"},
	} {
		t.Run(name, func(t *testing.T) {
			header := forged.Clone()
			if name == "authenticated" {
				delete(header, "X-User-Ids") // the order of two would be chance
			}
			outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				before := len(r.Header)
				gateway.Auth(tt.a, tt.opts)(caller).ServeHTTP(w, r)
				if len(r.Header) != before {
					t.Error("the header of what stands outside was changed")
				}
			})
			if _, body := asks(t, outer, header); body != tt.want {
				t.Errorf("%q, want %q", body, tt.want)
			}
		})
	}
}

func TestAuthInsideAuth(t *testing.T) {
	outer := gateway.Auth(fixed(&gateway.Identity{Subject: "outer"}, nil), nil)
	anonymous := gateway.Auth(fixed(nil, gateway.ErrNoCredentials), &gateway.AuthOptions{Optional: true})
	inner := gateway.Auth(fixed(&gateway.Identity{Subject: "inner"}, nil), nil)
	for name, tt := range map[string]struct {
		mw   gateway.Middleware
		want string
	}{
		"the inner counts":               {gateway.Chain(outer, inner), "inner|X-User-Id=inner"},
		"unless it finds no credentials": {gateway.Chain(outer, anonymous), "outer|X-User-Id=outer"},
	} {
		if _, body := asks(t, tt.mw(caller), nil); body != tt.want {
			t.Errorf("%s: %q", name, body)
		}
	}
}

func TestAuthReportOnlyLogs(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewJSONHandler(&log, nil)))
	defer slog.SetDefault(before)
	h := gateway.Auth(edJWT(nil), &gateway.AuthOptions{ReportOnly: true})(caller)
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+edToken(map[string]any{"iss": "https://evil.example"}))
	h.ServeHTTP(httptest.NewRecorder(), r)
	line := log.String()
	for _, want := range []string{`"gateway: would refuse"`, `"policy":"auth"`, `"status":401`, "issuer"} {
		if !strings.Contains(line, want) {
			t.Errorf("the log lacks %s: %s", want, line)
		}
	}
	if strings.Contains(line, "evil") {
		t.Errorf("the log has the token's words: %s", line)
	}
}

func TestAuthClientLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a := gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) {
		cancel()
		return nil, ctx.Err()
	})
	w := httptest.NewRecorder()
	gateway.Auth(a, nil)(caller).ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	if w.Code != 499 {
		t.Errorf("status %d", w.Code)
	}
}

func TestAuthPanics(t *testing.T) {
	for name, f := range map[string]func(){
		"nil authenticator": func() { gateway.Auth(nil, nil) },
		"control in realm":  func() { gateway.Auth(edJWT(nil), &gateway.AuthOptions{Realm: "a\r\nb"}) },
		"realm, not ASCII":  func() { gateway.Auth(edJWT(nil), &gateway.AuthOptions{Realm: "ä"}) },
		"nameless cookie":   func() { gateway.CookieToken("") },
		"nameless header":   func() { gateway.HeaderToken("") },
		"header with colon": func() { gateway.HeaderToken("a:") },
	} {
		if v, _ := panics(f).(string); !strings.HasPrefix(v, "gateway: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
}

func TestWithIdentity(t *testing.T) {
	ctx := gateway.WithIdentity(context.Background(), &gateway.Identity{Subject: "u"})
	if id, ok := gateway.IdentityFrom(ctx); !ok || id.Subject != "u" {
		t.Error("not found")
	}
	if _, ok := gateway.IdentityFrom(gateway.WithIdentity(ctx, nil)); ok {
		t.Error("nil is not anonymous")
	}
	if _, ok := gateway.IdentityFrom(context.Background()); ok {
		t.Error("found without a record")
	}
}
