// Connect combines the gateway with connectrpc.com/connect: its middleware around a Connect handler in this
// process, which finds the caller by IdentityFrom, and Proxy before a Connect service elsewhere. Both speak
// all three protocols: Connect, gRPC and gRPC-Web.
package main

import (
	"context"
	"log"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(remote http.RoundTripper) http.Handler {
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), gateway.Auth(gateway.AuthenticatorFunc(byKey), nil))
	rt.Handle(greet, newGreeter())
	rt.Handle("/remote/", gateway.Proxy(remote, &gateway.ProxyOptions{StripPrefix: "/remote"}))
	return &rt
}

// The procedures of a service, as protoc-gen-connect-go would name them.
const (
	greet = "/example.Greeter/Greet"
	spell = "/example.Greeter/Spell"
)

func newGreeter() http.Handler {
	return connect.NewUnaryHandler(greet,
		func(ctx context.Context, in *connect.Request[wrapperspb.StringValue]) (*connect.Response[wrapperspb.StringValue], error) {
			id, ok := gateway.IdentityFrom(ctx)
			if !ok {
				return nil, connect.NewError(connect.CodeUnauthenticated, nil)
			}
			return connect.NewResponse(wrapperspb.String(in.Msg.Value + ", " + id.Subject)), nil
		})
}

// newRemote is a service behind a gateway. A stream sends one letter for each that next receives.
func newRemote(next <-chan bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(greet, connect.NewUnaryHandler(greet,
		func(_ context.Context, in *connect.Request[wrapperspb.StringValue]) (*connect.Response[wrapperspb.StringValue], error) {
			return connect.NewResponse(wrapperspb.String(in.Msg.Value + ", " + in.Header().Get("X-User-ID"))), nil
		}))
	mux.Handle(spell, connect.NewServerStreamHandler(spell,
		func(_ context.Context, in *connect.Request[wrapperspb.StringValue], out *connect.ServerStream[wrapperspb.StringValue]) error {
			for _, letter := range strings.Split(in.Msg.Value, "") {
				if err := out.Send(wrapperspb.String(letter)); err != nil {
					return err
				}
				<-next
			}
			return connect.NewError(connect.CodeOutOfRange, nil)
		}))
	return mux
}

// byKey authenticates by a header field, as a stand-in for NewOIDC.
func byKey(r *http.Request) (*gateway.Identity, error) {
	switch r.Header.Get("X-API-Key") {
	case "":
		return nil, gateway.ErrNoCredentials
	case "key of alice":
		return &gateway.Identity{Subject: "alice"}, nil
	}
	return nil, gateway.ErrUnauthenticated
}

// protocols has HTTP/2 without TLS, which gRPC needs, beside HTTP/1.1.
func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

func main() {
	remote := gateway.NewUpstream("remote", gateway.MustTargets("h2c://127.0.0.1:9000"), nil)
	srv := &http.Server{Addr: "127.0.0.1:8080", Handler: newHandler(remote), Protocols: protocols()}
	log.Fatal(gateway.Serve(context.Background(), srv, nil))
}
