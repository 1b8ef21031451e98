package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// TestOrigins: whose pages may send credentials that a browser adds by itself, and open WebSockets with them.
func TestOrigins(t *testing.T) {
	token := edToken(nil)
	cookie := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.CookieToken("session") })
	// A session that is not the token itself, as one that is encrypted.
	session := edJWT(func(o *gateway.JWTOptions) {
		o.Token = func(r *http.Request) string {
			if _, err := r.Cookie("opaque"); err != nil {
				return ""
			}
			return token
		}
	})
	foreignAuth := gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		if _, err := r.Cookie("opaque"); err != nil {
			return nil, gateway.ErrNoCredentials
		}
		return &gateway.Identity{Subject: "u"}, nil
	})
	header := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.HeaderToken("X-Token") })
	query := edJWT(func(o *gateway.JWTOptions) {
		o.Token = func(r *http.Request) string { return r.URL.Query().Get("token") }
	})
	own, evil := "http://example.com", "https://evil.example"
	sessionCookie, opaque := "a=b; session="+token, "opaque=1"
	allow := func(origins ...string) *gateway.AuthOptions { return &gateway.AuthOptions{Origins: origins} }
	strict := &gateway.AuthOptions{Origins: []string{}}
	type fields = map[string]string
	socket := func(f fields) fields {
		f["Connection"], f["Upgrade"] = "Upgrade", "WebSocket"
		return f
	}
	for name, tt := range map[string]struct {
		a      gateway.Authenticator
		opts   *gateway.AuthOptions
		method string
		fields fields
		ok     bool
	}{
		"handshake of its own page":                 {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": own}), true},
		"its own page, over TLS":                    {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": "https://EXAMPLE.com:443"}), true},
		"handshake of another page":                 {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": evil}), false},
		"handshake of a sandboxed page":             {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": "null"}), false},
		"handshake with two origins":                {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": own + " " + evil}), false},
		"handshake of a subdomain":                  {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": "http://sub.example.com"}), false},
		"handshake of another port":                 {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": "http://example.com:8080"}), false},
		"handshake of a lookalike":                  {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": "http://example.com.evil.example"}), false},
		"handshake with a user in the origin":       {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Origin": "http://example.com@evil.example"}), false},
		"handshake of a program":                    {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie}), true},
		"handshake of a listed page":                {cookie, allow("https://app.example"), "GET", socket(fields{"Cookie": sessionCookie, "Origin": "https://app.example"}), true},
		"its own page is always listed":             {cookie, allow("https://app.example"), "GET", socket(fields{"Cookie": sessionCookie, "Origin": own}), true},
		"the listed page over http":                 {cookie, allow("https://app.example"), "GET", socket(fields{"Cookie": sessionCookie, "Origin": "http://app.example"}), false},
		"any page":                                  {cookie, allow("*"), "GET", socket(fields{"Cookie": sessionCookie, "Origin": evil}), true},
		"no Origin, cross-site":                     {cookie, nil, "GET", socket(fields{"Cookie": sessionCookie, "Sec-Fetch-Site": "cross-site"}), false},
		"POST of another page":                      {cookie, nil, "POST", fields{"Cookie": sessionCookie, "Origin": evil}, false},
		"GET of another page with credentials":      {cookie, nil, "GET", fields{"Cookie": sessionCookie, "Origin": evil}, false},
		"POST of its own page":                      {cookie, nil, "POST", fields{"Cookie": sessionCookie, "Origin": own, "Sec-Fetch-Site": "same-origin"}, true},
		"POST of its own page, Host changed":        {cookie, nil, "POST", fields{"Cookie": sessionCookie, "Origin": "https://public.example", "Sec-Fetch-Site": "same-origin"}, true},
		"POST without Origin, cross-site":           {cookie, nil, "POST", fields{"Cookie": sessionCookie, "Sec-Fetch-Site": "cross-site"}, false},
		"POST without Origin, same-site":            {cookie, nil, "POST", fields{"Cookie": sessionCookie, "Sec-Fetch-Site": "same-site"}, false},
		"a link on another page":                    {cookie, nil, "GET", fields{"Cookie": sessionCookie, "Sec-Fetch-Site": "cross-site"}, true},
		"typed in":                                  {cookie, nil, "GET", fields{"Cookie": sessionCookie, "Sec-Fetch-Site": "none"}, true},
		"POST of a program":                         {cookie, nil, "POST", fields{"Cookie": sessionCookie}, true},
		"a bearer token from another page":          {edJWT(nil), nil, "POST", fields{"Authorization": "Bearer " + token, "Origin": evil}, true},
		"a bearer token beside a cookie":            {edJWT(nil), nil, "GET", socket(fields{"Authorization": "Bearer " + token, "Origin": evil, "Cookie": "a=b"}), true},
		"a header's token beside a cookie":          {header, nil, "GET", socket(fields{"X-Token": token, "Origin": evil, "Cookie": "a=b"}), true},
		"a token in the query beside a cookie":      {query, nil, "GET", socket(fields{"Origin": evil, "Cookie": "a=b"}), true},
		"a session, handshake of another page":      {session, nil, "GET", socket(fields{"Cookie": opaque, "Origin": evil}), false},
		"a session, handshake of its own page":      {session, nil, "GET", socket(fields{"Cookie": opaque, "Origin": own}), true},
		"own Authenticator, handshake":              {foreignAuth, nil, "GET", socket(fields{"Cookie": opaque, "Origin": evil}), false},
		"own Authenticator, POST, Origins":          {foreignAuth, strict, "POST", fields{"Cookie": opaque, "Origin": evil}, false},
		"own Authenticator, in FirstOf":             {gateway.FirstOf(edJWT(nil), foreignAuth), nil, "GET", socket(fields{"Cookie": opaque, "Origin": evil}), false},
		"cookie in FirstOf":                         {gateway.FirstOf(edJWT(nil), cookie), nil, "POST", fields{"Cookie": sessionCookie, "Origin": evil}, false},
		"cookie in Issuers":                         {gateway.Issuers(map[string]*gateway.JWT{testIssuer: cookie}), nil, "POST", fields{"Cookie": sessionCookie, "Origin": evil}, false},
		"optional, handshake of another page":       {cookie, &gateway.AuthOptions{Optional: true}, "GET", socket(fields{"Cookie": sessionCookie, "Origin": evil}), false},
		"optional, nobody":                          {cookie, &gateway.AuthOptions{Optional: true}, "GET", socket(fields{"Origin": evil}), true},
		"optional, nobody, Origins":                 {cookie, &gateway.AuthOptions{Optional: true, Origins: []string{}}, "GET", socket(fields{"Origin": evil}), false},
		"a bearer token's handshake, Origins":       {edJWT(nil), strict, "GET", socket(fields{"Authorization": "Bearer " + token, "Origin": evil}), false},
		"a bearer token's POST, Origins":            {edJWT(nil), strict, "POST", fields{"Authorization": "Bearer " + token, "Origin": evil}, true},
		"report only":                               {cookie, &gateway.AuthOptions{ReportOnly: true}, "GET", socket(fields{"Cookie": sessionCookie, "Origin": evil}), true},
		"handshake over HTTP/2, of another page":    {cookie, nil, "CONNECT", fields{":protocol": "websocket", "Cookie": sessionCookie, "Origin": evil}, false},
		"handshake over HTTP/2, no Origin, foreign": {cookie, nil, "CONNECT", fields{":protocol": "websocket", "Cookie": sessionCookie, "Sec-Fetch-Site": "cross-site"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "http://example.com/ws", nil)
			if strings.Contains(name, "in the query") {
				r.URL.RawQuery = "token=" + token
			}
			for name, value := range tt.fields {
				r.Header[http.CanonicalHeaderKey(name)] = []string{value}
			}
			w := recorded(gateway.Auth(tt.a, tt.opts)(caller), r)
			want := 200
			if !tt.ok {
				want = 403
			}
			if w.Code != want || strings.Contains(w.Body.String(), "evil") {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// TestOriginsBehindProxy: the request's own host is the one that a trusted proxy reports.
func TestOriginsBehindProxy(t *testing.T) {
	cookie := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.CookieToken("session") })
	for peer, want := range map[string]int{"10.0.0.1:1": 200, "192.0.2.1:1": 403} {
		h := gateway.Chain(gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("10.0.0.0/8")), gateway.Auth(cookie, nil))(caller)
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = peer
		for name, value := range map[string]string{"Cookie": "session=" + edToken(nil), "Origin": "https://public.example", "X-Forwarded-Host": "public.example", "Upgrade": "websocket"} {
			r.Header.Set(name, value)
		}
		if w := recorded(h, r); w.Code != want {
			t.Errorf("from %s: %d", peer, w.Code)
		}
	}
	// An inner Auth looks at its own credentials, and not at where an outer one found some.
	inner := gateway.Auth(cookie, nil)
	outer := gateway.Auth(edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.HeaderToken("X-Token") }), nil)
	r := httptest.NewRequest("POST", "/", nil)
	for name, value := range map[string]string{"Cookie": "session=" + edToken(map[string]any{"sub": "other"}), "Origin": "https://evil.example", "X-Token": edToken(nil)} {
		r.Header.Set(name, value)
	}
	if w := recorded(gateway.Chain(outer, inner)(caller), r); w.Code != 403 {
		t.Errorf("inner: %d", w.Code)
	}
	own := gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) { return &gateway.Identity{Subject: "u"}, nil })
	r.Method = "GET"
	r.Header.Set("Upgrade", "websocket")
	if w := recorded(gateway.Chain(outer, gateway.Auth(own, nil))(caller), r); w.Code != 403 {
		t.Errorf("inner, an Authenticator of its own: %d", w.Code)
	}
}

func TestOriginsPanics(t *testing.T) {
	for _, bad := range []string{"", "app.example", "https://", "https://app.example/", "https://app.example/path", "https://u@app.example", "https://app.example?a", "https://app.example#", "null", "https://*.example\x00"} {
		if v := panicOf(func() { gateway.Auth(edJWT(nil), &gateway.AuthOptions{Origins: []string{bad}}) }); !strings.HasPrefix(v, "gateway: Auth: ") {
			t.Errorf("%q: panic %q", bad, v)
		}
	}
}
