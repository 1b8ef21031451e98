package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
)

// With this in its environment the test's binary is the gateway. It answers with its process id, and at /slow
// with more when the request's body ends.
const asGateway = "GATEWAY_TABLEFLIP"

func TestMain(m *testing.M) {
	if os.Getenv(asGateway) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	time.AfterFunc(5*time.Minute, func() { log.Fatal("nobody has stopped this process") })
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.EnableFullDuplex()
		fmt.Fprint(w, os.Getpid())
		if r.URL.Path == "/slow" {
			c.Flush()
			io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, " in the end")
		}
	})
	if err := run(ctx, "127.0.0.1:0", h, os.Stdout); err != nil {
		log.Fatal(err)
	}
	fmt.Println(os.Getpid(), "ends")
}

// TestUpgrade replaces the process while one request is being answered and others are sent.
func TestUpgrade(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), asGateway+"=1")
	stdout, all, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	cmd.Stdout, cmd.Stderr = all, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all.Close()
	lines := bufio.NewScanner(stdout)
	next := func() (pid, rest string) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("the processes said no more: ", lines.Err())
		}
		pid, rest, _ = strings.Cut(lines.Text(), " ")
		return pid, rest
	}
	old, addr := next()
	if old != fmt.Sprint(cmd.Process.Pid) {
		t.Fatalf("%s is no gateway", old)
	}
	body, finish := io.Pipe()
	slow, err := http.Post("http://"+addr+"/slow", "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()

	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	young, inherited := next()
	if young == old || inherited != addr {
		t.Errorf("process %s has %s; want another than %s with %s", young, inherited, old, addr)
	}
	fresh := &http.Transport{DisableKeepAlives: true}
	var last string
	for range 100 {
		if last = ask.DoWith(t, fresh, "GET", "http://"+addr, "").Body; last != young && last != old {
			t.Fatalf("answered by %q", last)
		}
	}
	finish.Close()
	if body, err := io.ReadAll(slow.Body); string(body) != old+" in the end" || err != nil {
		t.Errorf("the request that was being answered got %q, %v", body, err)
	}
	if pid, rest := next(); pid != old || rest != "ends" {
		t.Errorf("%s %s; want that %s ends", pid, rest, old)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the old process: %v", err)
	}
	if got := ask.DoWith(t, fresh, "GET", "http://"+addr, "").Body; got != young {
		t.Errorf("answered by %s; want %s", got, young)
	}

	pid, err := strconv.Atoi(young)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if pid, rest := next(); pid != young || rest != "ends" || lines.Scan() {
		t.Errorf("%s %s, %s; want that %s ends", pid, rest, lines.Text(), young)
	}
}
