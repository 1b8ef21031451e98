// Grpcgateway puts the gateway's middleware around a mux of github.com/grpc-ecosystem/grpc-gateway, which
// translates JSON over HTTP into gRPC. The gRPC service is told the caller whom Auth found, and by nobody
// else.
package main

import (
	"context"
	"log"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(conn grpc.ClientConnInterface) (http.Handler, error) {
	mux := runtime.NewServeMux(
		// The default of earlier releases passes on Grpc-Metadata-*, by which an anonymous client could send
		// x-user-id.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(func(ctx context.Context, _ *http.Request) metadata.MD {
			md := metadata.Pairs("x-trace-id", gateway.TraceID(ctx))
			if id, ok := gateway.IdentityFrom(ctx); ok {
				md.Set("x-user-id", id.Subject)
			}
			return md
		}),
		// Errors of gRPC get the form of all others.
		runtime.WithErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
			s := status.Convert(err)
			gateway.WriteError(w, r, &gateway.Error{Status: runtime.HTTPStatusFromCode(s.Code()), Detail: s.Message(), Err: err})
		}),
	)
	if err := register(mux, conn); err != nil {
		return nil, err
	}
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), gateway.Auth(gateway.AuthenticatorFunc(byKey), &gateway.AuthOptions{Optional: true}))
	rt.Handle("/v1/", mux)
	return &rt, nil
}

const upper = "/example.Words/Upper"

// register does what the function does that protoc-gen-grpc-gateway generates.
func register(mux *runtime.ServeMux, conn grpc.ClientConnInterface) error {
	const path = "/v1/upper/{text}"
	return mux.HandlePath("GET", path, func(w http.ResponseWriter, r *http.Request, values map[string]string) {
		_, m := runtime.MarshalerForRequest(mux, r)
		ctx, err := runtime.AnnotateContext(r.Context(), mux, r, upper, runtime.WithHTTPPathPattern(path))
		if err != nil {
			runtime.HTTPError(r.Context(), mux, m, w, r, err)
			return
		}
		var md runtime.ServerMetadata
		out := new(wrapperspb.StringValue)
		err = conn.Invoke(ctx, upper, wrapperspb.String(values["text"]), out, grpc.Header(&md.HeaderMD), grpc.Trailer(&md.TrailerMD))
		ctx = runtime.NewServerMetadataContext(ctx, md)
		if err != nil {
			runtime.HTTPError(ctx, mux, m, w, r, err)
			return
		}
		runtime.ForwardResponseMessage(ctx, mux, m, w, r, out, mux.GetForwardResponseOptions()...)
	})
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

func main() {
	conn, err := grpc.NewClient("127.0.0.1:9000", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	h, err := newHandler(conn)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: h}, nil))
}
