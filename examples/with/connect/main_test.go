package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

func serve(t *testing.T, h http.Handler) string {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.Protocols = protocols()
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestConnect calls, by each protocol, the handler in this process and the service behind the gateway. The
// messages of a stream arrive one by one, and then its error.
func TestConnect(t *testing.T) {
	next := make(chan bool)
	target := "h2c" + strings.TrimPrefix(serve(t, newRemote(next)), "http")
	srv := serve(t, newHandler(gateway.NewUpstream("remote", gateway.MustTargets(target), nil)))
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	http1, http2 := new(http.Transport), &http.Transport{Protocols: h2}
	defer http1.CloseIdleConnections()
	defer http2.CloseIdleConnections()
	for _, tt := range []struct {
		name    string
		over    http.RoundTripper
		options []connect.ClientOption
	}{
		{"Connect over HTTP/1.1", http1, nil},
		{"Connect with JSON", http2, []connect.ClientOption{connect.WithProtoJSON()}},
		{"gRPC", http2, []connect.ClientOption{connect.WithGRPC()}},
		{"gRPC-Web", http1, []connect.ClientOption{connect.WithGRPCWeb()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ask := func(url, key string) (string, error) {
				client := connect.NewClient[wrapperspb.StringValue, wrapperspb.StringValue](&http.Client{Transport: tt.over}, url, tt.options...)
				in := connect.NewRequest(wrapperspb.String("Good day"))
				in.Header().Set("X-API-Key", key)
				in.Header().Set("X-User-ID", "admin") // forged
				out, err := client.CallUnary(t.Context(), in)
				if err != nil {
					return "", err
				}
				return out.Msg.Value, nil
			}
			for _, url := range []string{srv + greet, srv + "/remote" + greet} {
				if got, err := ask(url, "key of alice"); got != "Good day, alice" || err != nil {
					t.Errorf("%s: %q, %v", url, got, err)
				}
				if got, err := ask(url, "key of mallory"); connect.CodeOf(err) != connect.CodeUnauthenticated {
					t.Errorf("%s: %q, %v; want unauthenticated", url, got, err)
				}
			}

			client := connect.NewClient[wrapperspb.StringValue, wrapperspb.StringValue](&http.Client{Transport: tt.over}, srv+"/remote"+spell, tt.options...)
			in := connect.NewRequest(wrapperspb.String("abc"))
			in.Header().Set("X-API-Key", "key of alice")
			stream, err := client.CallServerStream(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"a", "b", "c"} {
				if !stream.Receive() || stream.Msg().Value != want {
					t.Fatalf("%v, %v; want %s", stream.Msg(), stream.Err(), want)
				}
				next <- true
			}
			if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeOutOfRange {
				t.Errorf("%v at the end; want out of range", stream.Err())
			}
			stream.Close()
		})
	}
}
