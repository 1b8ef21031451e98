package gateway

import (
	"context"
	"time"
)

// Identity is what an Authenticator learned. Treat it as read-only.
type Identity struct {
	Subject, Issuer  string
	Audience, Scopes []string
	Expiry           time.Time      // zero: none
	Claims           map[string]any // everything, numbers as json.Number
}

// IdentityFrom returns who sent the request, as Auth or WithIdentity found it.
func IdentityFrom(ctx context.Context) (*Identity, bool) {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return nil, false
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.identity, ex.identity != nil
}

// WithIdentity is for handlers that know the caller by other means: a child of ctx's record, which
// leaves the request's own as it is. A nil id makes the request anonymous to what is inside.
func WithIdentity(ctx context.Context, id *Identity) context.Context {
	v := exchangeFrom(ctx).variant(ctx)
	v.identity = id
	return v
}
