package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// stack is all that runs in this process, and the redis-server.
type stack struct {
	redis    *redisServer
	backend  *backend
	gateways []*node
	cancel   context.CancelFunc
	servers  []*http.Server
}

// node is one gateway.
type node struct {
	url    string
	client *redis.Client
}

func start(ctx context.Context, log *slog.Logger) (s *stack, err error) {
	s = new(stack)
	ctx, s.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.redis, err = startRedis(ctx); err != nil {
		return s, err
	}
	s.backend = new(backend)
	if s.backend.url, err = s.listen(s.backend); err != nil {
		return s, err
	}
	for i := range 3 {
		n := &node{client: redis.NewClient(&redis.Options{Addr: s.redis.addr, ContextTimeoutEnabled: true})}
		s.gateways = append(s.gateways, n)
		n.url, err = s.listen(newGateway(ctx, n.client, s.backend.url, log.With("gateway", i+1)))
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// listen serves h on a free port until close, and returns its URL.
func (s *stack) listen(h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	s.servers = append(s.servers, srv)
	go srv.Serve(l)
	return "http://" + l.Addr().String(), nil
}

func (s *stack) close() {
	s.cancel()
	for _, srv := range s.servers {
		_ = srv.Close()
	}
	for _, n := range s.gateways {
		_ = n.client.Close()
	}
	if s.redis != nil {
		s.redis.kill()
	}
}

// backend says hello until it is broken.
type backend struct {
	url    string
	broken atomic.Bool
	asked  atomic.Int64
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/break":
		b.broken.Store(true)
	case "/heal":
		b.broken.Store(false)
	default:
		b.asked.Add(1)
		if b.broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "hello")
	}
}

// redisServer is a redis-server that keeps nothing on disk.
type redisServer struct {
	program, addr string

	mu   sync.Mutex
	cmd  *exec.Cmd
	dead chan struct{}
}

var errNoRedis = errors.New("redis-server is not in the PATH; install it: apt-get install redis-server (Debian, Ubuntu), " +
	"dnf install valkey (Fedora), brew install redis (macOS)")

func startRedis(ctx context.Context) (*redisServer, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		if program, err = exec.LookPath("valkey-server"); err != nil {
			return nil, errNoRedis
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &redisServer{program: program, addr: l.Addr().String()}
	_ = l.Close()
	return r, r.start(ctx)
}

// start starts the server and waits until it answers.
func (r *redisServer) start(ctx context.Context) error {
	_, port, _ := net.SplitHostPort(r.addr)
	out := new(bytes.Buffer)
	cmd := exec.Command(r.program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	dead := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(dead)
	}()
	r.mu.Lock()
	r.cmd, r.dead = cmd, dead
	r.mu.Unlock()
	for deadline := time.After(10 * time.Second); ; {
		if conn, err := net.Dial("tcp", r.addr); err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-dead:
			return fmt.Errorf("redis-server ended: %s", out)
		case <-deadline:
			r.kill()
			return errors.New("redis-server does not answer on port " + strconv.Quote(port))
		case <-ctx.Done():
			r.kill()
			return ctx.Err()
		}
	}
}

func (r *redisServer) pid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cmd.Process.Pid
}

// kill kills the server and waits for its end.
func (r *redisServer) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		<-r.dead
	}
}
