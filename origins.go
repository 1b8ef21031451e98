package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// originRules decides which origins' pages may send requests with credentials that a browser adds by itself.
// See Auth.
type originRules struct {
	all     bool     // check every WebSocket and every request with a cookie; otherwise only credentials in a cookie
	any     bool     // every origin is allowed
	allowed []string // in the form that normalOrigin returns
}

// newOriginRules panics on a malformed origin. who is the name of the constructor, for the message.
func newOriginRules(who string, origins []string) originRules {
	rules := originRules{all: origins != nil}
	for _, o := range origins {
		if o == "*" {
			rules.any = true
			continue
		}
		origin, _, ok := normalOrigin(o)
		if !ok {
			panic(fmt.Sprintf("gateway: %s: %q is not an origin, such as https://app.example", who, o))
		}
		rules.allowed = append(rules.allowed, origin)
	}
	return rules
}

var errForeignPage = errors.New("sent by a page of another origin")

// concern reports whether the rules may refuse r: a browser has sent it, and it has a cookie or rules.all is
// set.
func (rules *originRules) concern(r *http.Request) bool {
	return (rules.all || len(r.Header["Cookie"]) > 0) && !rules.any &&
		(len(r.Header["Origin"]) > 0 || len(r.Header["Sec-Fetch-Site"]) > 0)
}

// check returns a 403 for a request that a page of another origin has sent. authenticated is false for a
// request without credentials.
func (rules *originRules) check(ex *exchange, r *http.Request, authenticated bool) error {
	checked := false
	if rules.all {
		checked = opensWebSocket(r) || len(r.Header["Cookie"]) > 0
	} else if authenticated {
		checked = cameInCookie(ex, r)
	}
	if !checked || rules.allow(r) {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrForbidden, errForeignPage)
}

// allow reports whether r was sent by a page of the gateway's own host or of an allowed origin, or by no page
// at all.
func (rules *originRules) allow(r *http.Request) bool {
	if r.Header.Get("Sec-Fetch-Site") == "same-origin" {
		return true // reliable, since no page can set it; Host may have been changed by a proxy
	}
	switch values := r.Header["Origin"]; len(values) {
	case 0:
		// Browsers send Origin with every handshake of a WebSocket and with every request whose method is not
		// safe. Older browsers do not always do so.
		switch r.Header.Get("Sec-Fetch-Site") {
		case "", "none":
			return true
		}
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
			return !opensWebSocket(r)
		}
		return false
	case 1:
		origin, u, ok := normalOrigin(values[0])
		if !ok {
			return false // such as "null"
		}
		if slices.Contains(rules.allowed, origin) {
			return true
		}
		// The scheme is not compared, as in http.CrossOriginProtection, because a proxy in front of the
		// gateway may have terminated TLS.
		_, host := clientOrigin(r)
		own := urlpath.WithoutPort(strings.ToLower(r.Host), u.Scheme)
		return u.Host == own || u.Host == urlpath.WithoutPort(strings.ToLower(host), u.Scheme)
	}
	return false
}

// normalOrigin parses an origin (RFC 6454 section 6.2). The host of the result is in lower case and without
// the default port.
func normalOrigin(s string) (origin string, u *url.URL, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Opaque != "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery ||
		u.Fragment != "" || strings.HasSuffix(s, "#") {
		return "", nil, false
	}
	u.Host = urlpath.WithoutPort(strings.ToLower(u.Host), u.Scheme)
	return u.Scheme + "://" + u.Host, u, true
}

// opensWebSocket reports whether r is the handshake of a WebSocket, over HTTP/1.1 (RFC 6455 section 4.1) or
// as an extended CONNECT (RFC 8441 section 4).
func opensWebSocket(r *http.Request) bool {
	return httpfield.HasToken(r.Header["Upgrade"], "websocket") ||
		r.Method == http.MethodConnect && strings.EqualFold(r.Header.Get(":protocol"), "websocket")
}

// credentialPlace is where the credentials of a request were found.
type credentialPlace uint8

const (
	placeUnknown credentialPlace = iota
	placeCookie
	placeElsewhere
)

// notePlace records where the credentials of r were found: in a cookie if a cookie contains token; elsewhere
// if another field or the query contains it, or if token is "". It does nothing if r has no cookie, since the
// place is not needed then.
func notePlace(r *http.Request, token string) {
	ex := exchangeFrom(r.Context())
	if ex == nil || len(r.Header["Cookie"]) == 0 {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.place = placeOf(r, token)
}

func placeOf(r *http.Request, token string) credentialPlace {
	has := func(line string) bool { return strings.Contains(line, token) }
	switch {
	case token == "":
		return placeElsewhere
	case slices.ContainsFunc(r.Header["Cookie"], has):
		return placeCookie
	case has(r.URL.RawQuery):
		return placeElsewhere
	}
	for _, values := range r.Header {
		if slices.ContainsFunc(values, has) {
			return placeElsewhere
		}
	}
	return placeUnknown // a cookie may contain the token in another encoding
}

// cameInCookie reports whether the credentials of r came in a cookie. If the place is unknown, it returns
// true for the handshake of a WebSocket with a cookie and without Authorization: a page cannot set fields of
// a handshake, so the credentials are probably in the cookie.
func cameInCookie(ex *exchange, r *http.Request) bool {
	ex.mu.Lock()
	place := ex.place
	ex.mu.Unlock()
	if place != placeUnknown {
		return place == placeCookie
	}
	return opensWebSocket(r) && len(r.Header["Cookie"]) > 0 && len(r.Header["Authorization"]) == 0
}

// forgetPlace forgets the place of the credentials that an outer Auth found. An inner Auth calls it before it
// looks for its own.
func (ex *exchange) forgetPlace() {
	ex.mu.Lock()
	ex.place = placeUnknown
	ex.mu.Unlock()
}
