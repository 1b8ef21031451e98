package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// The functions below hold the code of docs/providers.md, between a comment with the provider's name and the return. A
// test compares both, and runs the code against documents and tokens of the provider's shape.

func keycloak(ctx context.Context) (http.Handler, error) {
	// Keycloak
	tokens, err := gateway.NewOIDC(ctx, "https://sso.example/realms/shop", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{Audience: "orders-api", Algorithms: []string{"RS256"}},
	})
	auth := gateway.Auth(tokens, nil)
	admins := gateway.RequireClaim("realm_access.roles", "orders-admin")
	return gateway.Chain(auth, admins)(caller), err
}

func auth0(ctx context.Context) (http.Handler, error) {
	// Auth0
	tokens, err := gateway.NewOIDC(ctx, "https://shop.eu.auth0.com/", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{Audience: "https://orders.example", Algorithms: []string{"RS256"}},
	})
	auth := gateway.Auth(tokens, nil)
	admins := gateway.RequireClaim("permissions", "admin:orders")
	return gateway.Chain(auth, admins)(caller), err
}

func entra(ctx context.Context) (http.Handler, error) {
	// Entra
	const tenant = "https://login.microsoftonline.com/5f7a1c2e-0000-4000-8000-1a2b3c4d5e6f"
	tokens, err := gateway.NewOIDC(ctx, tenant+"/v2.0", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{Audience: "9b2e4f6a-0000-4000-8000-0f1e2d3c4b5a", Algorithms: []string{"RS256"}, Subject: []string{"oid"}},
	})
	auth := gateway.Auth(tokens, nil)
	admins := gateway.RequireClaim("roles", "Orders.Admin")
	return gateway.Chain(auth, admins)(caller), err
}

func entraV1(ctx context.Context) (http.Handler, error) {
	// Entra, version 1
	tokens, err := gateway.NewOIDC(ctx, "https://sts.windows.net/5f7a1c2e-0000-4000-8000-1a2b3c4d5e6f/", gateway.OIDCOptions{
		JWT:       gateway.JWTOptions{Audience: "api://orders", Algorithms: []string{"RS256"}, Subject: []string{"oid"}},
		Discovery: "https://login.microsoftonline.com/5f7a1c2e-0000-4000-8000-1a2b3c4d5e6f/.well-known/openid-configuration",
	})
	auth := gateway.Auth(tokens, nil)
	return auth(caller), err
}

func cognito(ctx context.Context) (http.Handler, error) {
	// Cognito
	tokens, err := gateway.NewOIDC(ctx, "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEf123", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{NoAudience: true, Algorithms: []string{"RS256"}},
	})
	auth := gateway.Auth(tokens, nil)
	ours := gateway.RequireClaim("client_id", "4g7h8j9k0l1m2n3p4q5r6s7t8u")
	admins := gateway.RequireClaim("cognito:groups", "admins")
	return gateway.Chain(auth, ours, admins)(caller), err
}

func google(ctx context.Context) (http.Handler, error) {
	// Google
	tokens, err := gateway.NewOIDC(ctx, "https://accounts.google.com", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{Audience: "1234567890-shop.apps.googleusercontent.com", Algorithms: []string{"RS256"}, IDTokens: true},
	})
	auth := gateway.Auth(tokens, nil)
	staff := gateway.RequireClaim("hd", "shop.example")
	return gateway.Chain(auth, staff)(caller), err
}

func zitadel(ctx context.Context) (http.Handler, error) {
	// zitadel
	tokens, err := gateway.NewOIDC(ctx, "https://shop-a1b2c3.zitadel.cloud", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{Audience: "264301298173419523", Algorithms: []string{"RS256"}},
	})
	opaque, err2 := gateway.NewIntrospection("https://shop-a1b2c3.zitadel.cloud/oauth/v2/introspect", gateway.IntrospectionOptions{
		ClientID: "264301298173485059@shop", ClientSecret: os.Getenv("ZITADEL_SECRET"), Audience: "264301298173419523",
	})
	auth := gateway.Auth(gateway.FirstOf(tokens, opaque), nil)
	admins := gateway.Require("role admin", func(id *gateway.Identity, _ *http.Request) bool {
		roles, _ := id.Claims["urn:zitadel:iam:org:project:roles"].(map[string]any)
		return roles["admin"] != nil
	})
	return gateway.Chain(auth, admins)(caller), errors.Join(err, err2)
}

func hydra(context.Context) (http.Handler, error) {
	// Ory Hydra
	opaque, err := gateway.NewIntrospection("http://hydra-admin:4445/admin/oauth2/introspect", gateway.IntrospectionOptions{
		Issuer: "https://hydra.example/", Audience: "https://orders.example", AllowHTTP: true,
	})
	auth := gateway.Auth(opaque, nil)
	readers := gateway.RequireScopes("orders.read")
	return gateway.Chain(auth, readers)(caller), err
}

func hydraJWT(ctx context.Context) (http.Handler, error) {
	// Ory Hydra, JSON Web Tokens
	tokens, err := gateway.NewOIDC(ctx, "https://hydra.example/", gateway.OIDCOptions{
		JWT: gateway.JWTOptions{Audience: "https://orders.example", Algorithms: []string{"RS256"}},
	})
	auth := gateway.Auth(tokens, nil)
	readers := gateway.RequireScopes("orders.read")
	return gateway.Chain(auth, readers)(caller), err
}

// providerFixture is a provider's documents and tokens, in the shapes that it uses.
type providerFixture struct {
	name      string
	new       func(context.Context) (http.Handler, error)
	documents map[string]string // by URL; KEYS stands for the key set
	token     object            // claims of an access token that is accepted
	header    object            // of its header, beside alg and kid
	want      string            // the subject
	traps     map[string]trap
}

// trap is a token that is refused: the good one with changed claims, or an opaque one.
type trap struct {
	changes object
	opaque  string
	status  int
}

// rsaSet is a key set as most providers publish it: a key for signatures, and one for encryption.
func rsaSet(members object) string {
	return keySet(jwk("sig-1", &testRSA().PublicKey, members), jwk("enc-1", &testRSA().PublicKey, object{"use": "enc", "alg": "RSA-OAEP"}))
}

// config is a discovery document with members that gateways do not read.
func config(issuer, jwksURI string) string {
	return string(mustJSON(object{
		"issuer": issuer, "jwks_uri": jwksURI, "authorization_endpoint": issuer + "/auth", "token_endpoint": issuer + "/token",
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"}, "subject_types_supported": []string{"public"},
		"claims_supported": []string{"sub", "iss"}, "request_parameter_supported": true,
	}))
}

func providerFixtures() []providerFixture {
	now := time.Now().Unix()
	times := func(c object) object {
		c["iat"], c["exp"] = now, now+3600
		return c
	}
	wellKnown := "/.well-known/openid-configuration"
	const tid = "5f7a1c2e-0000-4000-8000-1a2b3c4d5e6f"
	msKeys := rsaSet(object{"use": "sig", "kid": "sig-1", "x5t": "abc", "x5c": []string{"MIIC"}, "cloud_instance_name": "microsoftonline.com"})
	kc := keycloakClaims(1)
	kc["iss"], kc["aud"] = "https://sso.example/realms/shop", []string{"orders-api", "account"}
	kc["realm_access"] = object{"roles": []string{"offline_access", "orders-admin"}}
	googleClaims := times(object{
		"iss": "https://accounts.google.com", "azp": "1234567890-shop.apps.googleusercontent.com", "aud": "1234567890-shop.apps.googleusercontent.com",
		"sub": "110169484474386276334", "hd": "shop.example", "email": "ada@shop.example", "email_verified": true, "at_hash": "HK6E_P6Dh8Y93mRNtsDB1Q", "nonce": "0394852-3190485-2490358",
	})
	entraClaims := times(object{
		"aud": "9b2e4f6a-0000-4000-8000-0f1e2d3c4b5a", "iss": "https://login.microsoftonline.com/" + tid + "/v2.0", "nbf": now, "aio": "AWQAm/8", "azp": "a1", "azpacr": "1",
		"oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474", "rh": "0.A", "roles": []string{"Orders.Admin"}, "scp": "orders.read orders.write", "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
		"tid": tid, "uti": "fqiBqXLPj0eQa82S-IYFAA", "ver": "2.0", "groups": []string{"e1", "e2"},
	})
	v1 := maps.Clone(entraClaims)
	maps.Copy(v1, object{"iss": "https://sts.windows.net/" + tid + "/", "aud": "api://orders", "ver": "1.0", "appid": "a1"})
	zitadelClaims := times(object{
		"iss": "https://shop-a1b2c3.zitadel.cloud", "sub": "264301298173419999", "aud": []string{"264301298173485059@shop", "264301298173419523"},
		"client_id": "264301298173485059@shop", "jti": "V2_1", "nbf": now, "urn:zitadel:iam:org:project:roles": object{"admin": object{"1": "shop.zitadel.cloud"}},
	})
	hydraClaims := times(object{
		"iss": "https://hydra.example/", "sub": "ada", "aud": []string{"https://orders.example"}, "client_id": "web", "ext": object{}, "jti": "j", "nbf": now, "scp": []string{"openid", "orders.read"},
	})
	return []providerFixture{
		{"Keycloak", keycloak, map[string]string{
			"https://sso.example/realms/shop" + wellKnown:                   config("https://sso.example/realms/shop", "https://sso.example/realms/shop/protocol/openid-connect/certs"),
			"https://sso.example/realms/shop/protocol/openid-connect/certs": rsaSet(object{"use": "sig", "alg": "RS256"}),
		}, times(kc), object{"typ": "JWT"}, kc["sub"].(string), map[string]trap{
			"aud account alone":      {object{"aud": "account"}, "", 401},
			"the ID token":           {object{"typ": "ID", "aud": "orders-api", "at_hash": "h", "nonce": "n"}, "", 401},
			"the refresh token":      {object{"typ": "Refresh", "aud": "orders-api"}, "", 401},
			"the inner host's name":  {object{"iss": "http://keycloak:8080/realms/shop"}, "", 401},
			"without the realm role": {object{"realm_access": object{"roles": []string{"offline_access"}}}, "", 403},
			"a client's role":        {object{"realm_access": nil, "resource_access": object{"orders-api": object{"roles": []string{"orders-admin"}}}}, "", 403},
		}},
		{"Auth0", auth0, map[string]string{
			"https://shop.eu.auth0.com" + wellKnown:           config("https://shop.eu.auth0.com/", "https://shop.eu.auth0.com/.well-known/jwks.json"),
			"https://shop.eu.auth0.com/.well-known/jwks.json": rsaSet(object{"use": "sig", "alg": "RS256", "x5t": "x", "x5c": []string{"MIIC"}}),
		}, times(object{
			"iss": "https://shop.eu.auth0.com/", "sub": "auth0|5f7c8ec7", "aud": []string{"https://orders.example", "https://shop.eu.auth0.com/userinfo"},
			"azp": "my_client_id", "scope": "openid profile read:orders", "permissions": []string{"read:orders", "admin:orders"},
		}), object{"typ": "JWT"}, "auth0|5f7c8ec7", map[string]trap{
			"issuer without the slash":           {object{"iss": "https://shop.eu.auth0.com"}, "", 401},
			"the ID token":                       {object{"aud": "my_client_id", "nonce": "n"}, "", 401},
			"no audience asked, encrypted":       {nil, "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..YWFh.YmJi.Y2Nj", 401},
			"no audience asked, opaque":          {nil, "dGhpcyBpcyBvcGFxdWU", 401},
			"a scope that is not a permission":   {object{"permissions": []string{}, "scope": "admin:orders"}, "", 403},
			"userinfo's audience and no other's": {object{"aud": "https://shop.eu.auth0.com/userinfo"}, "", 401},
		}},
		{"Entra", entra, map[string]string{
			"https://login.microsoftonline.com/" + tid + "/v2.0" + wellKnown:    config("https://login.microsoftonline.com/"+tid+"/v2.0", "https://login.microsoftonline.com/"+tid+"/discovery/v2.0/keys"),
			"https://login.microsoftonline.com/" + tid + "/discovery/v2.0/keys": msKeys,
		}, entraClaims, object{"typ": "JWT", "x5t": "abc"}, "690222be-ff1a-4d56-abd1-7e4f7d38e474", map[string]trap{
			"a token of version 1":        {object{"iss": "https://sts.windows.net/" + tid + "/", "ver": "1.0"}, "", 401},
			"the application ID URI":      {object{"aud": "api://orders"}, "", 401},
			"a token for Microsoft Graph": {object{"aud": "00000003-0000-0000-c000-000000000000"}, "", 401},
			"another tenant's":            {object{"iss": "https://login.microsoftonline.com/00000000-0000-4000-8000-000000000000/v2.0"}, "", 401},
			"the ID token":                {object{"nonce": "n", "scp": nil}, "", 401},
			"a group is not a role":       {object{"roles": nil, "groups": []string{"Orders.Admin"}}, "", 403},
		}},
		{"Entra, version 1", entraV1, map[string]string{
			"https://login.microsoftonline.com/" + tid + wellKnown:         config("https://sts.windows.net/"+tid+"/", "https://login.microsoftonline.com/"+tid+"/discovery/keys"),
			"https://login.microsoftonline.com/" + tid + "/discovery/keys": msKeys,
		}, v1, object{"typ": "JWT"}, "690222be-ff1a-4d56-abd1-7e4f7d38e474", map[string]trap{
			"a token of version 2": {object{"iss": "https://login.microsoftonline.com/" + tid + "/v2.0"}, "", 401},
		}},
		{"Cognito", cognito, map[string]string{
			"https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEf123" + wellKnown:           config("https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEf123", "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEf123/.well-known/jwks.json"),
			"https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEf123/.well-known/jwks.json": rsaSet(object{"use": "sig", "alg": "RS256"}),
		}, times(object{
			"sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "cognito:groups": []string{"admins"}, "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEf123", "version": 2,
			"client_id": "4g7h8j9k0l1m2n3p4q5r6s7t8u", "origin_jti": "o", "event_id": "e", "token_use": "access", "scope": "aws.cognito.signin.user.admin", "auth_time": now, "jti": "j", "username": "ada",
		}), nil, "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", map[string]trap{
			"the ID token":           {object{"token_use": "id", "aud": "4g7h8j9k0l1m2n3p4q5r6s7t8u", "client_id": nil, "at_hash": "h"}, "", 401},
			"another client's token": {object{"client_id": "another"}, "", 403},
			"another pool's":         {object{"iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Other"}, "", 401},
		}},
		{"Google", google, map[string]string{
			"https://accounts.google.com" + wellKnown:    config("https://accounts.google.com", "https://www.googleapis.com/oauth2/v3/certs"),
			"https://www.googleapis.com/oauth2/v3/certs": rsaSet(object{"use": "sig", "alg": "RS256"}),
		}, googleClaims, object{"typ": "JWT"}, "110169484474386276334", map[string]trap{
			"the access token":        {nil, "ya29.a0AfH6SMBx-opaque_token", 401},
			"another app's":           {object{"aud": "666-evil.apps.googleusercontent.com"}, "", 401},
			"a private account":       {object{"hd": nil}, "", 403},
			"an email says so, hd no": {object{"hd": "evil.example", "email": "x@shop.example"}, "", 403},
		}},
		{"zitadel", zitadel, map[string]string{
			"https://shop-a1b2c3.zitadel.cloud" + wellKnown:         config("https://shop-a1b2c3.zitadel.cloud", "https://shop-a1b2c3.zitadel.cloud/oauth/v2/keys"),
			"https://shop-a1b2c3.zitadel.cloud/oauth/v2/keys":       rsaSet(object{"use": "sig", "alg": "RS256"}),
			"https://shop-a1b2c3.zitadel.cloud/oauth/v2/introspect": string(mustJSON(withChanges(zitadelClaims, object{"active": true, "token_type": "Bearer"}))),
		}, zitadelClaims, object{"typ": "JWT"}, "264301298173419999", map[string]trap{
			"without the project's scope": {object{"aud": []string{"264301298173485059@shop"}}, "", 401},
			"another role":                {object{"urn:zitadel:iam:org:project:roles": object{"user": object{"1": "x"}}}, "", 403},
			"an opaque one is asked for":  {nil, "VjJfMjY0MzAx-opaque", 200},
		}},
		{"Ory Hydra", hydra, map[string]string{
			"http://hydra-admin:4445/admin/oauth2/introspect": string(mustJSON(times(object{
				"active": true, "iss": "https://hydra.example/", "sub": "ada", "aud": []string{"https://orders.example"}, "client_id": "web", "scope": "openid orders.read",
				"token_type": "Bearer", "token_use": "access_token", "nbf": now,
			}))),
		}, nil, nil, "ada", map[string]trap{"opaque": {nil, "ory_at_1u2v3w", 200}}},
		{"Ory Hydra, no audience asked", hydra, map[string]string{
			"http://hydra-admin:4445/admin/oauth2/introspect": `{"active":true,"iss":"https://hydra.example/","sub":"ada","aud":[],"scope":"orders.read","token_use":"access_token"}`,
		}, nil, nil, "", map[string]trap{"opaque": {nil, "ory_at_1u2v3w", 401}}},
		{"Ory Hydra, refresh token", hydra, map[string]string{
			"http://hydra-admin:4445/admin/oauth2/introspect": `{"active":true,"iss":"https://hydra.example/","sub":"ada","aud":["https://orders.example"],"scope":"orders.read","token_use":"refresh_token"}`,
		}, nil, nil, "", map[string]trap{"opaque": {nil, "ory_rt_1u2v3w", 401}}},
		{"Ory Hydra, JSON Web Tokens", hydraJWT, map[string]string{
			"https://hydra.example" + wellKnown:           config("https://hydra.example/", "https://hydra.example/.well-known/jwks.json"),
			"https://hydra.example/.well-known/jwks.json": rsaSet(object{"use": "sig", "alg": "RS256"}),
		}, hydraClaims, object{"typ": "JWT"}, "ada", map[string]trap{
			"the ID token":             {object{"at_hash": "h", "nonce": "n"}, "", 401},
			"without the scope":        {object{"scp": []string{"openid"}}, "", 403},
			"no audience asked":        {object{"aud": []string{}}, "", 401},
			"issuer without its slash": {object{"iss": "https://hydra.example"}, "", 401},
		}},
	}
}

func withChanges(c, changes object) object {
	c = maps.Clone(c)
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// TestProviders runs the code of docs/providers.md: the provider's access token is accepted, and what people take for one
// is not.
func TestProviders(t *testing.T) {
	usual := http.DefaultTransport
	defer func() { http.DefaultTransport = usual }()
	for _, f := range providerFixtures() {
		t.Run(f.name, func(t *testing.T) {
			http.DefaultTransport = roundTrip(func(r *http.Request) (*http.Response, error) {
				body, ok := f.documents[r.URL.String()]
				if !ok {
					return answeredText(r, 404, "", nil), nil
				}
				return answeredText(r, 200, body, nil), nil
			})
			h, err := f.new(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ask := func(name, token string, want int) {
				t.Helper()
				w := recorded(h, withBearer(token))
				if w.Code != want || want == 200 && f.want != "" && !strings.HasPrefix(w.Body.String(), f.want+"|") {
					t.Errorf("%s: %d %s %s", name, w.Code, w.Body, w.Header().Get("WWW-Authenticate"))
				}
			}
			signed := func(c object) string {
				return sign("RS256", testRSA(), withChanges(object{"kid": "sig-1"}, f.header), c)
			}
			if f.token != nil {
				ask("the access token", signed(f.token), 200)
			}
			for name, trap := range f.traps {
				if trap.opaque != "" {
					ask(name, trap.opaque, trap.status)
				} else {
					ask(name, signed(withChanges(f.token, trap.changes)), trap.status)
				}
			}
		})
	}
}

// TestProvidersDocument: the code in docs/providers.md is the code that was tested.
func TestProvidersDocument(t *testing.T) {
	source := string(must(os.ReadFile("providers_test.go")))
	document := string(must(os.ReadFile("docs/providers.md")))
	tested := make(map[string]bool)
	for part := range strings.SplitSeq(source, "\n\t// ") {
		name, rest, _ := strings.Cut(part, "\n")
		code, _, ok := strings.Cut(rest, "\treturn ")
		if !ok || !strings.HasPrefix(rest, "\ttokens, err") && !strings.HasPrefix(rest, "\tconst tenant") && !strings.HasPrefix(rest, "\topaque, err") {
			continue
		}
		code = strings.ReplaceAll("\n"+code, "\n\t", "\n")[1:]
		tested[strings.TrimSuffix(code, "\n")] = true
		if !strings.Contains(document, "```go\n"+code+"```\n") {
			t.Errorf("the code of %s is not in the document:\n%s", name, code)
		}
	}
	blocks := strings.Split(document, "```go\n")[1:]
	if len(tested) < 9 || len(blocks) != len(tested) {
		t.Errorf("%d pieces of code in the document, %d tested", len(blocks), len(tested))
	}
	for _, name := range []string{"Keycloak", "Auth0", "Entra", "Cognito", "Google", "zitadel", "Ory Hydra"} {
		if !strings.Contains(document, fmt.Sprintf("\n## %s\n", name)) {
			t.Errorf("no section on %s", name)
		}
	}
}
