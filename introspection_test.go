package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// introspect returns an Authenticator whose requests go to answer, without a socket.
func introspect(o gateway.IntrospectionOptions, answer func(*http.Request) (*http.Response, error)) gateway.Authenticator {
	o.Client = &http.Client{Transport: roundTrip(answer), Timeout: 5 * time.Second}
	return must(gateway.NewIntrospection("https://id.example/introspect", o))
}

func TestIntrospectionAnswers(t *testing.T) {
	now := time.Now().Unix()
	bad := gateway.ErrUnauthenticated
	away := errors.New("503")
	for name, tt := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"active":                      {200, `{"active":true,"sub":"u","aud":"api"}`, nil},
		"active, with more":           {200, fmt.Sprintf(`{"active":true,"sub":"u","aud":["x","api"],"exp":%d,"nbf":%d}`, now+60, now-60), nil},
		"not active":                  {200, `{"active":false}`, bad},
		"not active, with more":       {200, `{"active":false,"sub":"u","aud":"api"}`, bad},
		"expired":                     {200, fmt.Sprintf(`{"active":true,"sub":"u","aud":"api","exp":%d}`, now-1), bad},
		"not yet":                     {200, fmt.Sprintf(`{"active":true,"sub":"u","aud":"api","nbf":%d}`, now+60), bad},
		"another audience":            {200, `{"active":true,"sub":"u","aud":"other"}`, bad},
		"no audience":                 {200, `{"active":true,"sub":"u"}`, bad},
		"active a string":             {200, `{"active":"true","sub":"u","aud":"api"}`, away},
		"active a number":             {200, `{"active":1,"sub":"u","aud":"api"}`, away},
		"active missing":              {200, `{"sub":"u","aud":"api"}`, away},
		"active in other case":        {200, `{"Active":true,"sub":"u","aud":"api"}`, away},
		"active twice":                {200, `{"active":false,"active":true,"sub":"u","aud":"api"}`, away},
		"exp a string":                {200, `{"active":true,"sub":"u","aud":"api","exp":"99999999999"}`, away},
		"aud a number":                {200, `{"active":true,"sub":"u","aud":1}`, away},
		"null members":                {200, `{"active":true,"sub":"u","aud":"api","exp":null,"nbf":null,"iss":null,"scope":null,"cnf":null}`, nil},
		"active null":                 {200, `{"active":null,"sub":"u","aud":"api"}`, away},
		"aud null":                    {200, `{"active":true,"sub":"u","aud":null}`, bad},
		"sub a number":                {200, `{"active":true,"sub":1,"aud":"api"}`, away},
		"Keycloak's access token":     {200, `{"active":true,"sub":"u","aud":"api","typ":"Bearer","token_type":"Bearer","nonce":"n"}`, nil},
		"Keycloak's refresh token":    {200, `{"active":true,"sub":"u","aud":"api","typ":"Refresh"}`, bad},
		"Keycloak's offline token":    {200, `{"active":true,"sub":"u","aud":"api","typ":"Offline"}`, bad},
		"Keycloak's ID token":         {200, `{"active":true,"sub":"u","aud":"api","typ":"ID"}`, bad},
		"Hydra's refresh token":       {200, `{"active":true,"sub":"u","aud":"api","token_use":"refresh_token"}`, bad},
		"Hydra's access token":        {200, `{"active":true,"sub":"u","aud":"api","token_use":"access_token","token_type":"Bearer"}`, nil},
		"too many values":             {200, `{"active":true,"sub":"u","aud":"api","g":[` + strings.Repeat("0,", 4096) + `0]}`, away},
		"garbage":                     {200, `<html>`, away},
		"empty":                       {200, ``, away},
		"too large":                   {200, `{"active":true,"sub":"` + strings.Repeat("u", 64<<10) + `","aud":"api"}`, away},
		"our credentials are bad":     {401, `{"error":"invalid_client"}`, away},
		"status 500 with a good body": {500, `{"active":true,"sub":"u","aud":"api"}`, away},
	} {
		t.Run(name, func(t *testing.T) {
			a := introspect(gateway.IntrospectionOptions{Audience: "api"}, func(r *http.Request) (*http.Response, error) {
				return answeredText(r, tt.status, tt.body, nil), nil
			})
			id, err := a.Authenticate(withBearer("opaque"))
			var e *gateway.Error
			switch {
			case tt.want == away:
				if !errors.As(err, &e) || e.Status != 503 {
					t.Errorf("error %v", err)
				}
			case !errors.Is(err, tt.want):
				t.Errorf("error %v, want %v", err, tt.want)
			case err == nil && id.Subject != "u":
				t.Errorf("identity %+v", id)
			}
		})
	}
}

// TestIntrospectionRequest has a real listener. It checks what the endpoint gets, and what the client gets.
func TestIntrospectionRequest(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, secret, ok := r.BasicAuth()
		if r.Method != "POST" || r.FormValue("token") != "a+/b==" || !ok || id != "gate%3Away" || secret != "s%26cret" {
			t.Errorf("%s %v %q %q", r.Method, r.Form, id, secret)
		}
		io.WriteString(w, `{"active":true,"sub":"u","scope":"read pay","iss":"https://id.example"}`)
	}))
	defer endpoint.Close()
	a := must(gateway.NewIntrospection(endpoint.URL, gateway.IntrospectionOptions{
		ClientID: "gate:way", ClientSecret: "s&cret", Client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}))
	id, err := a.Authenticate(withBearer("a+/b=="))
	if err != nil || id.Issuer != "https://id.example" || !slices.Equal(id.Scopes, []string{"read", "pay"}) {
		t.Errorf("identity %+v, error %v", id, err)
	}
	resp, _ := askServer(t, gateway.Auth(a, nil)(caller), http.Header{"Authorization": {"Bearer a+/b=="}})
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
	endpoint.Close()
	resp, body := askServer(t, gateway.Auth(a, nil)(caller), http.Header{"Authorization": {"Bearer other"}})
	if resp.StatusCode != 503 || strings.Contains(body, "127.0.0.1") {
		t.Errorf("endpoint away: status %d, %s", resp.StatusCode, body)
	}
}

func TestIntrospectionCredentials(t *testing.T) {
	a := introspect(gateway.IntrospectionOptions{}, func(r *http.Request) (*http.Response, error) {
		t.Error("asked")
		return answeredText(r, 200, `{"active":true,"sub":"u"}`, nil), nil
	})
	for value, want := range map[string]error{
		"": gateway.ErrNoCredentials, "Basic dTpw": gateway.ErrNoCredentials, "Bearer": gateway.ErrUnauthenticated,
		"Bearer a b": gateway.ErrUnauthenticated, "Bearer a\x00": gateway.ErrUnauthenticated, "Bearer ä": gateway.ErrUnauthenticated,
		"Bearer =": gateway.ErrUnauthenticated, "Bearer a=b": gateway.ErrUnauthenticated,
		"Bearer " + strings.Repeat("a", 16<<10+1): gateway.ErrUnauthenticated,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"] = []string{value}
		if _, err := a.Authenticate(r); !errors.Is(err, want) {
			t.Errorf("%.20q: %v", value, err)
		}
	}
}

func TestIntrospectionCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		for name, tt := range map[string]struct {
			cacheFor time.Duration
			exp      time.Duration // from now; 0: none
			want     time.Duration // for which it is not asked again
		}{
			"default":       {0, 0, 30 * time.Second},
			"own":           {time.Minute, 0, time.Minute},
			"capped by exp": {time.Minute, 10 * time.Second, 10 * time.Second},
			"none":          {-1, 0, 0},
		} {
			var asked atomic.Int64
			a := introspect(gateway.IntrospectionOptions{CacheFor: tt.cacheFor}, func(r *http.Request) (*http.Response, error) {
				asked.Add(1)
				body := `{"active":true,"sub":"u"}`
				if tt.exp > 0 {
					body = fmt.Sprintf(`{"active":true,"sub":"u","exp":%d}`, time.Now().Add(tt.exp).Unix())
				}
				return answeredText(r, 200, body, nil), nil
			})
			ask := func(want int64) {
				t.Helper()
				if _, err := a.Authenticate(withBearer("opaque")); err != nil || asked.Load() != want {
					t.Errorf("%s: asked %d times, want %d, error %v, after %v", name, asked.Load(), want, err, time.Since(start))
				}
			}
			ask(1)
			if tt.want > 0 {
				time.Sleep(tt.want - time.Nanosecond)
				ask(1)
				time.Sleep(time.Nanosecond)
			}
			ask(2)
			time.Sleep(time.Second - time.Duration(time.Now().Nanosecond())) // exp has whole seconds
		}
	})
}

func TestIntrospectionOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		a := introspect(gateway.IntrospectionOptions{}, func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(time.Second)
			return answeredText(r, 200, `{"active":true,"sub":"u"}`, nil), nil
		})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := a.Authenticate(withBearer("opaque")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if asked.Load() != 1 {
			t.Errorf("asked %d times", asked.Load())
		}
	})
}

// TestIntrospectionBound: a long answer takes the place of several in the cache.
func TestIntrospectionBound(t *testing.T) {
	for name, tt := range map[string]struct{ pad, least, most int }{
		"short": {0, 32, 64},
		"long":  {60 << 10, 1, 8}, // one in each of eight shards
	} {
		asked := 0
		a := introspect(gateway.IntrospectionOptions{CacheSize: 64, CacheBytes: 8 * 80 << 10}, func(r *http.Request) (*http.Response, error) {
			asked++
			return answeredText(r, 200, `{"active":true,"sub":"u","pad":"`+strings.Repeat("p", tt.pad)+`"}`, nil), nil
		})
		const tokens = 200
		for i := range tokens {
			must(a.Authenticate(withBearer(fmt.Sprint("token-", i))))
		}
		asked = 0
		for i := tokens - 1; i >= 0; i-- {
			must(a.Authenticate(withBearer(fmt.Sprint("token-", i))))
		}
		if kept := tokens - asked; kept < tt.least || kept > tt.most {
			t.Errorf("%s: %d tokens are remembered, %d to %d expected", name, kept, tt.least, tt.most)
		}
	}
}

func TestIntrospectionHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := introspect(gateway.IntrospectionOptions{}, func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		start := time.Now()
		_, err := a.Authenticate(withBearer("opaque"))
		var e *gateway.Error
		if !errors.As(err, &e) || e.Status != 503 || time.Since(start) != 5*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
	})
}

func TestNewIntrospectionErrors(t *testing.T) {
	if _, err := gateway.NewIntrospection("http://id.example/", gateway.IntrospectionOptions{}); err == nil {
		t.Error("plain http is taken")
	}
	if _, err := gateway.NewIntrospection("https://id.example/", gateway.IntrospectionOptions{CacheSize: -1}); err == nil {
		t.Error("negative CacheSize is taken")
	}
	for name, o := range map[string]gateway.IntrospectionOptions{"CacheBytes": {CacheBytes: -1}, "MaxInFlight": {MaxInFlight: -1}, "Subject": {Subject: []string{""}}} {
		if _, err := gateway.NewIntrospection("https://id.example/", o); err == nil {
			t.Errorf("a bad %s is taken", name)
		}
	}
	if _, err := gateway.NewIntrospection("http://id.example/", gateway.IntrospectionOptions{AllowHTTP: true}); err != nil {
		t.Error(err)
	}
}

func TestIntrospectionIssuerAndSubject(t *testing.T) {
	for name, tt := range map[string]struct {
		opts   gateway.IntrospectionOptions
		answer string
		want   string // "" for a refusal
	}{
		"any issuer":        {gateway.IntrospectionOptions{}, `"sub":"u","iss":"https://other.example"`, "u"},
		"its issuer":        {gateway.IntrospectionOptions{Issuer: testIssuer}, `"sub":"u","iss":"` + testIssuer + `"`, "u"},
		"another issuer":    {gateway.IntrospectionOptions{Issuer: testIssuer}, `"sub":"u","iss":"https://other.example"`, ""},
		"no issuer":         {gateway.IntrospectionOptions{Issuer: testIssuer}, `"sub":"u"`, ""},
		"issuer null":       {gateway.IntrospectionOptions{Issuer: testIssuer}, `"sub":"u","iss":null`, ""},
		"a machine":         {gateway.IntrospectionOptions{Subject: []string{"sub", "client_id"}}, `"client_id":"m"`, "m"},
		"subject, not null": {gateway.IntrospectionOptions{Subject: []string{"sub", "client_id"}}, `"sub":null,"client_id":"m"`, "m"},
	} {
		in := introspect(tt.opts, func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, `{"active":true,`+tt.answer+`}`, nil), nil
		})
		id, err := in.Authenticate(withBearer("opaque"))
		if (err == nil) != (tt.want != "") || err == nil && id.Subject != tt.want || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

// TestIntrospectionRemembersRefusals: a refused token is not asked about again for ten seconds, and a flood of refused
// tokens displaces no good one.
func TestIntrospectionRemembersRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		status := 200
		a := introspect(gateway.IntrospectionOptions{CacheSize: 64}, func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			return answeredText(r, status, fmt.Sprintf(`{"active":%v,"sub":"u"}`, strings.HasPrefix(r.PostFormValue("token"), "good")), nil), nil
		})
		ask := func(token string, want error, times int64) {
			t.Helper()
			asked.Store(0)
			if _, err := a.Authenticate(withBearer(token)); !errors.Is(err, want) || asked.Load() != times {
				t.Errorf("%s: %v, asked %d times", token, err, asked.Load())
			}
		}
		bad := gateway.ErrUnauthenticated
		ask("good", nil, 1)
		ask("bad", bad, 1)
		ask("bad", bad, 0)
		time.Sleep(10 * time.Second)
		ask("bad", bad, 1)
		for i := range 1000 {
			ask(fmt.Sprint("flood-", i), bad, 1)
		}
		ask("good", nil, 0)

		// That nobody can tell is not remembered.
		status = 500
		asked.Store(0)
		for range 2 {
			if _, err := a.Authenticate(withBearer("another")); err == nil || errors.Is(err, bad) {
				t.Error(err)
			}
		}
		if asked.Load() != 2 {
			t.Errorf("asked %d times", asked.Load())
		}
		status = 200
		none := introspect(gateway.IntrospectionOptions{CacheFor: -1}, func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			return answeredText(r, 200, `{"active":false}`, nil), nil
		})
		a = none
		ask("bad", bad, 1)
		ask("bad", bad, 1)
	})
}

// TestIntrospectionInFlight: no more than MaxInFlight questions are asked at once. Others wait, within their context. Many
// who bring one token ask once, whether it is good or not, and without a cache too.
func TestIntrospectionInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, asked atomic.Int64
		a := introspect(gateway.IntrospectionOptions{MaxInFlight: 3, CacheFor: -1}, func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			time.Sleep(time.Second)
			return answeredText(r, 200, fmt.Sprintf(`{"active":%v,"sub":"u"}`, r.PostFormValue("token") != "bad"), nil), nil
		})
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() { must(a.Authenticate(withBearer(fmt.Sprint("token-", i)))) })
		}
		synctest.Wait()
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			if _, err := a.Authenticate(withBearer("impatient").WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		wg.Wait()
		if most.Load() != 3 || asked.Load() != 12 || time.Since(start) != 4*time.Second {
			t.Errorf("%d at once, %d in all, %v", most.Load(), asked.Load(), time.Since(start))
		}
		for token, want := range map[string]error{"good": nil, "bad": gateway.ErrUnauthenticated} {
			asked.Store(0)
			for range 50 {
				wg.Go(func() {
					if _, err := a.Authenticate(withBearer(token)); !errors.Is(err, want) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if asked.Load() != 1 {
				t.Errorf("%s: asked %d times", token, asked.Load())
			}
		}
	})
}

// TestIntrospectionConnections: many questions at once, again and again, do not need a new connection each.
func TestIntrospectionConnections(t *testing.T) {
	const many = 16
	var opened atomic.Int64
	together := make(chan struct{}, many)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		together <- struct{}{}
		for late := deadline(); len(together)%many != 0 && time.Now().Before(late); {
			runtime.Gosched() // until all have come
		}
		io.WriteString(w, `{"active":true,"sub":"u"}`)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	client := &http.Client{Timeout: time.Minute}
	a := must(gateway.NewIntrospection(s.URL, gateway.IntrospectionOptions{Client: client, CacheFor: -1}))
	for round := range 5 {
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() { must(a.Authenticate(withBearer(fmt.Sprint("token-", round, "-", i)))) })
		}
		wg.Wait()
		for range many {
			<-together
		}
	}
	if opened.Load() > 2*many { // net/http gives up a connection now and then, where the writer is slow to say that it is done
		t.Errorf("%d connections for %d questions at once", opened.Load(), many)
	}
	if client.Transport != nil {
		t.Error("the caller's client was changed")
	}
}
