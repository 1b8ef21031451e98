package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// ProtectedResource returns a handler that serves the metadata of a protected resource (RFC 9728 section 2).
// OAuth clients that know only the resource's URL, such as those of the Model Context Protocol, find there
// which server issues tokens. Mount it at /.well-known/oauth-protected-resource, outside of Auth, and set
// AuthOptions.ResourceMetadata to its URL. If the resource has a path, append that path: the metadata of
// https://api.example/mcp is at https://api.example/.well-known/oauth-protected-resource/mcp (section 3.1).
//
//	rt.Handle("/.well-known/oauth-protected-resource", gateway.ProtectedResource(map[string]any{
//		"resource":              "https://api.example",
//		"authorization_servers": []string{"https://id.example"},
//		"scopes_supported":      []string{"read", "pay"},
//	}))
//
// The handler answers GET and HEAD, and CORS preflight requests, for pages of every origin, because the
// metadata is public. It is encoded once, so later changes to metadata have no effect.
//
// ProtectedResource panics unless metadata has the member resource, an absolute URL without a fragment, and
// when metadata cannot be encoded as JSON.
func ProtectedResource(metadata map[string]any) http.Handler {
	resource, _ := metadata["resource"].(string)
	if u, err := url.Parse(resource); err != nil || !u.IsAbs() || u.Host == "" || u.Fragment != "" {
		panic(fmt.Sprintf("gateway: ProtectedResource: the resource %q is not an absolute URL without a fragment", resource))
	}
	body, err := json.Marshal(metadata)
	if err != nil {
		panic("gateway: ProtectedResource: " + err.Error())
	}
	length := strconv.Itoa(len(body))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			h.Set("Content-Type", "application/json")
			h.Set("Content-Length", length)
			h.Set("Cache-Control", "public, max-age=3600")
			h.Set("X-Content-Type-Options", "nosniff")
			if r.Method == http.MethodGet {
				_, _ = w.Write(body)
			}
		case http.MethodOptions:
			h.Set("Access-Control-Allow-Methods", "GET, HEAD")
			h.Set("Access-Control-Allow-Headers", "*")
			h.Set("Access-Control-Max-Age", "3600")
			w.WriteHeader(http.StatusNoContent)
		default:
			h.Set("Allow", "GET, HEAD, OPTIONS")
			WriteError(w, r, &Error{Status: http.StatusMethodNotAllowed})
		}
	})
}
