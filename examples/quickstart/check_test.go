package main

import (
	"io"
	"log/slog"
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

// The console's URL comes first, the token is printed once, and every command fits a screen.
func TestHelp(t *testing.T) {
	s, err := start("127.0.0.1:0", "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var out strings.Builder
	if err := s.help(&out); err != nil {
		t.Fatal(err)
	}
	said := out.String()
	if first, _, _ := strings.Cut(said, "\n"); first != "Console: "+s.ops+"/console/" {
		t.Errorf("first line %q", first)
	}
	_, rest, _ := strings.Cut(said, "\nexport TOKEN=")
	token, rest, _ := strings.Cut(rest, "\n")
	if strings.Count(token, ".") != 2 || strings.Contains(rest, token) {
		t.Errorf("token %q", token)
	}
	for line := range strings.Lines(rest) {
		if len(line) > 100 {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
	}
}

// TestPortInUse: the error says which address is taken and by which flag to choose another.
func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct{ flag, addr, ops string }{
		{"-addr", taken.Addr().String(), "127.0.0.1:0"},
		{"-ops", "127.0.0.1:0", taken.Addr().String()},
	} {
		err := serve(t.Context(), test.addr, test.ops, io.Discard)
		if err == nil {
			t.Fatalf("%s: no error", test.flag)
		}
		said := err.Error()
		if !strings.Contains(said, taken.Addr().String()) || !strings.HasSuffix(said, test.flag+")") || strings.Contains(said, "\n") {
			t.Errorf("%s: %s", test.flag, said)
		}
	}
}
