package main

import (
	"io"
	"net"
	"strings"
	"testing"
)

// TestCheck is what -check does.
func TestCheck(t *testing.T) {
	if err := check(t.Context(), t.Output()); err != nil {
		t.Fatal(err)
	}
}

// TestPortInUse: the error says which address is taken and by which flag to choose another.
func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct{ flag, addr, metrics string }{
		{"-addr", taken.Addr().String(), "127.0.0.1:0"},
		{"-metrics", "127.0.0.1:0", taken.Addr().String()},
	} {
		err := serve(t.Context(), test.addr, test.metrics, io.Discard)
		if err == nil {
			t.Fatalf("%s: no error", test.flag)
		}
		said := err.Error()
		if !strings.Contains(said, taken.Addr().String()) || !strings.HasSuffix(said, test.flag+")") || strings.Contains(said, "\n") {
			t.Errorf("%s: %s", test.flag, said)
		}
	}
}
