//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// asProgram makes the test's binary be the program.
const asProgram = "E2E_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program starts the program and, at the end of the test, makes sure that it is gone.
func program(t *testing.T, ctx context.Context, args ...string) (cmd *exec.Cmd, out, progress *bytes.Buffer) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(ctx, self, args...)
	out, progress = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Env = append(os.Environ(), asProgram+"=1", "TMPDIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = out, progress
	return cmd, out, progress
}

// TestQuick runs every workload with every contender that is installed, with counts that measure nothing.
func TestQuick(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	svg := filepath.Join(t.TempDir(), "chart.svg")
	cmd, out, progress := program(t, ctx, "-quick", "-rounds", "1", "-requests", "40", "-clients", "4", "-idle", "20", "-svg", svg,
		"-with", "another=exec "+os.Args[0]+" role floor $SCHEME $LISTEN $TARGET "+t.TempDir(),
		"-with", "broken=exit 3")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, progress, out)
	}
	for _, line := range strings.Split(out.String(), "\n") {
		if strings.HasPrefix(line, "LEFT OUT:") {
			t.Log(line)
		}
	}
	must := []string{"÷ ReverseProxy", `LEFT OUT: broken from "1 KiB GET"`, "another"}
	for _, w := range workloads {
		must = append(must, w.title)
	}
	for _, c := range contenders {
		if _, err := installed(c.name); err != nil && (c.name == "nginx" || c.name == "haproxy") {
			must = append(must, "LEFT OUT: "+c.name+" is not installed")
			continue
		}
		must = append(must, c.name)
		if strings.Contains(out.String(), "LEFT OUT: "+c.name) {
			t.Errorf("%s is left out", c.name)
		}
	}
	for _, s := range must {
		if !strings.Contains(out.String(), s) {
			t.Errorf("%q is missing", s)
		}
	}
	if t.Failed() {
		t.Logf("%s%s", progress, out)
	}
	drawn, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(drawn)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the chart is not XML: %v", err)
		}
	}
}

// TestInterrupt ends a run in its midst: it says so, and nothing that it started is left.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd, out, _ := program(t, ctx, "-rounds", "1000", "-only", "get1k", "-contenders", "floor")
	lines, err := (func() (io.ReadCloser, error) { cmd.Stderr = nil; return cmd.StderrPipe() })()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	for interrupted := false; ; {
		b := make([]byte, 1024)
		n, err := lines.Read(b)
		seen = append(seen, b[:n]...)
		if err != nil {
			break
		}
		if !interrupted && bytes.Contains(seen, []byte("rounds")) {
			interrupted = true
			cmd.Process.Signal(os.Interrupt)
		}
	}
	if err := cmd.Wait(); err == nil || !bytes.Contains(seen, []byte("interrupted")) {
		t.Errorf("%v\n%s%s", err, seen, out)
	}
	left, err := filepath.Glob(filepath.Join(strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], "TMPDIR="), "gateway-e2e-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestClientRejectsWrongAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		ok           bool
	}{
		{"with a length", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", true},
		{"in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", true},
		{"closing", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", true},
		{"a status", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nhello", false},
		{"too short", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell", false},
		{"too long", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", false},
		{"too short in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n\r\n", false},
		{"cut off", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", false},
		{"no length", "HTTP/1.1 200 OK\r\n\r\nhello", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			served := make(chan struct{})
			go func() {
				defer close(served)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				conn.Read(make([]byte, 100))
				io.WriteString(conn, tt.answer)
			}()
			load, err := open(l.Addr().String(), nil, 1, call{wire: []byte("GET / HTTP/1.1\r\n\r\n"), want: 5})
			if err != nil {
				t.Fatal(err)
			}
			defer load.close()
			if _, err := load.send(t.Context(), 1, 0); (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
			<-served
		})
	}
}

func TestSummaryLeavesDisturbedRoundsOut(t *testing.T) {
	cpu := func(v float64, disturbed bool) sample { return sample{cpu: v, disturbed: disturbed} }
	r := &result{workload: workloads[0], series: []series{
		{name: reference, samples: []sample{cpu(10, false), cpu(10, false), cpu(50, true), cpu(20, false)}},
		{name: "floor", samples: []sample{cpu(5, false), cpu(90, true), cpu(5, false), cpu(10, false)}},
		{name: "nginx", samples: []sample{cpu(4, true), cpu(4, true), cpu(4, true), cpu(2, true)}},
	}}
	f := r.summarize()
	if f[1].ratio != 0.5 || f[1].counted != 2 || f[1].disturbedRoundsCounted {
		t.Errorf("floor: %+v", f[1])
	}
	if f[2].counted != 4 || !f[2].disturbedRoundsCounted {
		t.Errorf("nginx: %+v", f[2])
	}
}

func TestReplaceResults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.md")
	if err := os.WriteFile(file, []byte("a\n<!-- e2e -->\nold\n<!-- e2e end -->\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := replaceResults(file, []byte("new\n")); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := os.ReadFile(file); string(got) != "a\n<!-- e2e -->\n\nnew\n\n<!-- e2e end -->\nb\n" {
		t.Errorf("got %q", got)
	}
	if err := os.WriteFile(file, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceResults(file, nil); err == nil {
		t.Error("no error without the lines")
	}
}
