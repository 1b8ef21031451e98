package gateway_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestTransportH2C(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	tr := gateway.NewTransport(nil)
	t.Cleanup(tr.(interface{ CloseIdleConnections() }).CloseIdleConnections)
	for scheme, proto := range map[string]string{"http": "HTTP/1.1", "h2c": "HTTP/2.0"} {
		targets := gateway.MustTargets(strings.Replace(s.URL, "http", scheme, 1))
		u := gateway.NewUpstream("u", targets, &gateway.UpstreamOptions{Transport: tr})
		rec := httptest.NewRecorder()
		gateway.Proxy(u, nil).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if rec.Body.String() != proto {
			t.Errorf("%s: %d %q, want %q", scheme, rec.Code, rec.Body, proto)
		}
	}
}
