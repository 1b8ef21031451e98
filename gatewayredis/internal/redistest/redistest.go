// Package redistest runs real Redis servers for tests, and breaks them.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Required is the environment variable that makes a missing redis-server a failure instead of a skip.
const Required = "GATEWAY_REQUIRE_REDIS"

// program is the path of redis-server, which is searched once.
var program = sync.OnceValues(func() (string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		path, err = exec.LookPath("valkey-server")
	}
	return path, err
})

// Need skips t, with the reason, where there is no redis-server. It fails t if Required is set.
func Need(t testing.TB) string {
	t.Helper()
	path, err := program()
	switch {
	case err == nil:
	case os.Getenv(Required) != "":
		t.Fatalf("redis-server is not in the PATH, and %s is set: apt-get install redis-server", Required)
	default:
		t.Skip("redis-server is not in the PATH: apt-get install redis-server")
	}
	return path
}

// Server is a redis-server process on loopback.
type Server struct {
	Addr string

	t    testing.TB
	args []string
	mu   sync.Mutex
	cmd  *exec.Cmd
	dead chan struct{} // is closed when cmd has ended
	out  *bytes.Buffer // of cmd
}

// Start starts a server on a free port, which ends with the test. It saves nothing. args are added to its command line.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	path := Need(t)
	dir := t.TempDir()
	for try := 0; ; try++ {
		port := freePort(t)
		s := &Server{Addr: "127.0.0.1:" + port, t: t}
		s.args = append([]string{path, "--bind", "127.0.0.1", "--port", port, "--dir", dir, "--daemonize", "no"}, args...)
		if len(args) > 1 && args[1] == "--sentinel" { // its configuration comes first
			s.args = append([]string{path, args[0]}, s.args[1:7]...)
			s.args = append(s.args, "--sentinel")
		} else {
			s.args = append(s.args, "--save", "", "--appendonly", "no")
		}
		err := s.start()
		if err == nil {
			t.Cleanup(s.Kill)
			return s
		}
		if try == 4 { // the port may have been taken by another process meanwhile
			t.Fatal(err)
		}
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// start starts the process and waits until it answers.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = new(bytes.Buffer)
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = attributes()
	if err := s.cmd.Start(); err != nil {
		return err
	}
	dead := make(chan struct{})
	s.dead = dead
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(dead)
	}(s.cmd)
	client := redis.NewClient(&redis.Options{Addr: s.Addr, DialTimeout: 10 * time.Second, MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	give := time.After(time.Minute)
	for !listens(s.Addr) || client.Ping(context.Background()).Err() != nil {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-dead:
			return fmt.Errorf("redis-server ended: %s", s.out)
		case <-give:
			_ = s.cmd.Process.Kill()
			return fmt.Errorf("redis-server does not answer")
		}
	}
	return nil
}

// listens reports whether something accepts connections on addr. It spares the log what go-redis writes of failures.
func listens(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// Client returns a client with go-redis' defaults, which is closed with the test.
func (s *Server) Client() *redis.Client { return s.ClientWith(redis.Options{}) }

// ClientWith returns a client of this server.
func (s *Server) ClientWith(opts redis.Options) *redis.Client {
	opts.Addr = s.Addr
	c := redis.NewClient(&opts)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Kill kills the process with SIGKILL and waits for its end. It does nothing when that has ended.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.cmd.Process.Kill()
	<-s.dead
}

// Pause stops the process by SIGSTOP: it accepts connections and does not answer.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Error(err)
	}
}

// Restart starts a killed server again, on the same port and without its data.
func (s *Server) Restart() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Error(err)
	}
}

// Do runs a command, which must succeed.
func (s *Server) Do(args ...any) {
	s.t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer c.Close()
	if err := c.Do(context.Background(), args...).Err(); err != nil {
		s.t.Errorf("%v: %v", args, err)
	}
}

// ReadOnly makes the server a replica of nothing, which refuses to write, until ReadWrite.
func (s *Server) ReadOnly() { s.Do("replicaof", "127.0.0.1", "1") }

// ReadWrite ends ReadOnly.
func (s *Server) ReadWrite() { s.Do("replicaof", "no", "one") }

// FillMemory sets the limit of memory below what is used, so that the server refuses to write, until FreeMemory.
func (s *Server) FillMemory() { s.Do("config", "set", "maxmemory", "1") }

// FreeMemory ends FillMemory.
func (s *Server) FreeMemory() { s.Do("config", "set", "maxmemory", "0") }

// Cluster is a Redis Cluster of three masters.
type Cluster struct {
	Nodes []*Server
	t     testing.TB
}

// StartCluster starts a Cluster. Its nodes take each other for failed after two seconds.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	Need(t)
	c := &Cluster{t: t}
	for range 3 {
		c.Nodes = append(c.Nodes, startNode(t))
	}
	ctx := context.Background()
	const slots = 16384
	for i, n := range c.Nodes {
		client := n.Client()
		n.Do("cluster", "addslotsrange", i*slots/3, (i+1)*slots/3-1)
		n.Do("cluster", "set-config-epoch", i+1)
		for _, other := range c.Nodes[:i] {
			meet(t, client, other)
		}
	}
	give := time.After(time.Minute)
	for _, n := range c.Nodes {
		client := n.Client()
		for {
			info, err := client.ClusterInfo(ctx).Result()
			if err == nil && strings.Contains(info, "cluster_state:ok") &&
				strings.Contains(info, "cluster_known_nodes:3") &&
				strings.Contains(info, "cluster_slots_ok:16384") {
				break
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-give:
				t.Fatalf("the cluster does not come up: %s %v", info, err)
			}
		}
	}
	return c
}

func startNode(t testing.TB) *Server {
	t.Helper()
	return Start(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t), "--cluster-node-timeout", "2000",
		"--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0")
}

// meet has the node of a client join the Cluster of another.
func meet(t testing.TB, client *redis.Client, other *Server) {
	t.Helper()
	ctx := context.Background()
	host, port, _ := net.SplitHostPort(other.Addr)
	bus, err := other.Client().ConfigGet(ctx, "cluster-port").Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Do(ctx, "cluster", "meet", host, port, bus["cluster-port"]).Err(); err != nil {
		t.Fatal(err)
	}
}

// AddReplica adds a replica of a node, which becomes the master by Takeover.
func (c *Cluster) AddReplica(of *Server) *Server {
	c.t.Helper()
	ctx := context.Background()
	r := startNode(c.t)
	client := r.Client()
	meet(c.t, client, of)
	id, err := of.Client().Do(ctx, "cluster", "myid").Text()
	if err != nil {
		c.t.Fatal(err)
	}
	give := time.After(time.Minute)
	for client.Do(ctx, "cluster", "replicate", id).Err() != nil { // before it knows the node
		select {
		case <-time.After(20 * time.Millisecond):
		case <-give:
			c.t.Fatal("the replica does not find its master")
		}
	}
	ready := func() bool {
		info, err := client.Info(ctx, "replication").Result()
		if err != nil || !strings.Contains(info, "master_link_status:up") {
			return false
		}
		for _, n := range c.Nodes {
			if nodes, err := n.Client().ClusterNodes(ctx).Result(); err != nil || !strings.Contains(nodes, "slave "+id) {
				return false
			}
		}
		return true
	}
	for !ready() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-give:
			c.t.Fatal("the replica does not catch up")
		}
	}
	return r
}

// Takeover makes a replica the master, whatever the others say.
func (s *Server) Takeover() {
	s.t.Helper()
	s.Do("cluster", "failover", "takeover")
}

// Client returns a client of the Cluster, which is closed with the test.
func (c *Cluster) Client() *redis.ClusterClient {
	var addrs []string
	for _, n := range c.Nodes {
		addrs = append(addrs, n.Addr)
	}
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

// StartSentinel starts a master, a replica of it, and a sentinel that makes the replica the master half a second after the
// master is lost. It returns the master, and a client.
func StartSentinel(t testing.TB) (*Server, *redis.Client) {
	t.Helper()
	ctx := context.Background()
	master := Start(t, "--repl-diskless-sync-delay", "0")
	host, port, _ := net.SplitHostPort(master.Addr)
	replica := Start(t, "--replicaof", host+" "+port)
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor main %s %s 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n", host, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := Start(t, config, "--sentinel")
	give := time.After(time.Minute)
	for {
		info, err := replica.Client().Info(ctx, "replication").Result()
		seen, _ := sentinel.Client().Do(ctx, "sentinel", "replicas", "main").Slice()
		if err == nil && strings.Contains(info, "master_link_status:up") && len(seen) == 1 {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-give:
			t.Fatalf("the sentinel does not see the replica: %s, %v", info, err)
		}
	}
	c := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{sentinel.Addr}})
	t.Cleanup(func() { _ = c.Close() })
	return master, c
}
