package main

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// words is the gRPC service: it says what it was asked, by whom, and in which trace.
var words = grpc.ServiceDesc{
	ServiceName: "example.Words", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Upper",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			if in.Value == "fail" {
				return nil, status.Error(codes.FailedPrecondition, "not today")
			}
			md, _ := metadata.FromIncomingContext(ctx)
			return wrapperspb.String(strings.Join([]string{strings.ToUpper(in.Value), strings.Join(md["x-user-id"], "+"), strings.Join(md["x-trace-id"], "+")}, " ")), nil
		},
	}},
}

func TestGRPCGateway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	srv.RegisterService(&words, nil)
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	h, err := newHandler(conn)
	if err != nil {
		t.Fatal(err)
	}
	url := ask.Serve(t, h)

	forged := []string{"X-API-Key", "key of alice", "X-User-ID", "admin", "Grpc-Metadata-X-User-Id", "admin", "Grpc-Metadata-X-Trace-Id", "mine"}
	got := ask.Do(t, "GET", url+"/v1/upper/word", "", forged...)
	if want := `200 "WORD alice ` + got.Header.Get("X-Trace-ID") + `"`; got.String() != want {
		t.Errorf("%s; want %s", got, want)
	}
	got = ask.Do(t, "GET", url+"/v1/upper/word", "", forged[2:]...)
	if want := `200 "WORD  ` + got.Header.Get("X-Trace-ID") + `"`; got.String() != want {
		t.Errorf("by nobody: %s; want %s", got, want)
	}
	for _, tt := range []struct{ path, key, want string }{
		{"/v1/upper/fail", "key of alice", "400"},
		{"/v1/lower/word", "key of alice", "404"},
		{"/v1/upper/word", "key of mallory", "401"},
	} {
		got := ask.Do(t, "GET", url+tt.path, "", "X-API-Key", tt.key)
		if !strings.HasPrefix(got.String(), tt.want) || !strings.Contains(got.Body, got.Header.Get("X-Trace-ID")) {
			t.Errorf("%s with the %s: %s; want %s with the trace id", tt.path, tt.key, got, tt.want)
		}
	}
}
