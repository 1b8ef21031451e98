package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// TestGRPCMalformed: a server of gRPC answers INTERNAL to what it cannot read. Any client can have that, so it says nothing
// about the server: after six such calls the circuit is closed, and the target is in.
func TestGRPCMalformed(t *testing.T) {
	for name, tt := range map[string]struct{ field, body string }{
		"binary metadata":       {"X-Bin: !", "\x00\x00\x00\x00\x00"},
		"deadline":              {"Grpc-Timeout: x", "\x00\x00\x00\x00\x00"},
		"deadline that is over": {"Grpc-Timeout: 1n", "\x00\x00\x00\x00\x00"},
		"message":               {"", "\x00\x00\x00\x00\x02\xff\xff"},
		"no message":            {"", ""},
		"two messages":          {"", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		"half a message":        {"", "\x00\x00\x00\x00\x09\x0a"},
		"message too large":     {"", "\x00\x7f\xff\xff\xff\x0a"},
		"unknown flag":          {"", "\x02\x00\x00\x00\x00"},
		"compressed by nothing": {"", "\x01\x00\x00\x00\x02\x0a\x00"},
		"unknown compression":   {"Grpc-Encoding: x", "\x01\x00\x00\x00\x02\x0a\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			grpc_health_v1.RegisterHealthServer(server, health.NewServer())
			go func() { _ = server.Serve(l) }()
			defer server.Stop()

			outside, inside := gateway.NewCircuit("breaker", nil), gateway.NewCircuit("upstream", nil)
			transport := gateway.NewTransport(nil)
			defer transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
			up := gateway.NewUpstream("health", gateway.MustTargets("h2c://"+l.Addr().String()),
				&gateway.UpstreamOptions{Transport: transport, Circuit: inside, Health: gateway.HealthOptions{MaxEjected: 1}})
			front := httptest.NewServer(gateway.Breaker(outside, nil)(gateway.Proxy(up, nil)))
			defer front.Close()
			for range 6 {
				r, err := http.NewRequestWithContext(t.Context(), "POST",
					front.URL+"/"+grpc_health_v1.Health_ServiceDesc.ServiceName+"/Check", strings.NewReader(tt.body))
				if err != nil {
					t.Fatal(err)
				}
				r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
				if name, value, ok := strings.Cut(tt.field, ": "); ok {
					r.Header.Set(name, value)
				}
				res, err := front.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			for _, c := range []*gateway.Circuit{outside, inside} {
				if c.State() != gateway.CircuitClosed {
					t.Errorf("the circuit of the %s is %v", c.Name(), c.State())
				}
			}
			if s := fmt.Sprint(up.Status()[0].Healthy, up.Status()[0].Pending); s != "true 0" {
				t.Errorf("the target: healthy and pending: %s", s)
			}
		})
	}
}
