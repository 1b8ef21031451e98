//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A contender is a reverse proxy that is measured.
type contender struct {
	name, what string
	gathers    bool // can answer an aggregate
	foreign    bool // named on the command line
	command    func(p place) (argv, env []string, err error)
}

// A place is where a contender runs: what it listens on, what it forwards to, and the directory with its files.
type place struct {
	listen, target string
	tls            bool
	dir            string
}

func (p place) scheme() string {
	if p.tls {
		return "https"
	}
	return "http"
}

func (p place) cert() string { return filepath.Join(p.dir, "cert.pem") }
func (p place) key() string  { return filepath.Join(p.dir, "key.pem") }

// reference is the contender that the others are divided by.
const reference = "reverseproxy"

var contenders = []*contender{
	{name: reference, what: "httputil.ReverseProxy with a BufferPool, 1,024 idle connections a host, no compression and no log", command: role(reference)},
	{name: "floor", what: "the least that a proxy behind net/http's server can cost: it sends a fixed request, finds the end of the answer and copies it", command: role("floor")},
	{name: "gateway", what: "this library: Proxy and Upstream alone", gathers: true, command: role("gateway")},
	{name: "gateway-all", what: "this library: Router, Observe, RS256 tokens by JWT, limits by address and by subject, circuit, retries", gathers: true, command: role("gateway-all")},
	{name: "gateway-metrics", what: "gateway-all with OpenTelemetry's metrics collected by its SDK", gathers: true, command: role("gateway-metrics")},
	{name: "handmade", what: "the reference behind a ServeMux, a token cache over golang-jwt, two limits by x/time/rate, gobreaker and a counter", command: role("handmade")},
	{name: "fasthttp", what: "a fasthttp server before a fasthttp client; it holds whole bodies in memory", command: role("fasthttp")},
	{name: "nginx", what: "nginx, one process", command: nginxProxy},
	{name: "haproxy", what: "HAProxy, one process of one thread", command: haproxy},
}

func contenderNames() (names []string) {
	for _, c := range contenders {
		names = append(names, c.name)
	}
	return names
}

// role runs a contender that this program plays itself.
func role(name string) func(place) ([]string, []string, error) {
	return func(p place) (argv, env []string, err error) {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		return []string{self, "role", name, p.scheme(), p.listen, p.target, p.dir}, []string{"GOMAXPROCS=1"}, nil
	}
}

// foreign is a contender that -with names.
func foreign(name, command string) *contender {
	return &contender{name: name, what: command, gathers: true, foreign: true, command: func(p place) (argv, env []string, err error) {
		return []string{"sh", "-c", command}, []string{
			"LISTEN=" + p.listen, "TARGET=" + p.target, "SCHEME=" + p.scheme(), "CERT=" + p.cert(), "KEY=" + p.key(),
			"PORT=" + p.listen[strings.LastIndexByte(p.listen, ':')+1:], "GOMAXPROCS=1",
		}, nil
	}}
}

// installed finds a program, also where only root's PATH looks.
func installed(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// nginxHead is what nginx has in common as contender and as target: a single process without a master, no log, and
// connections that stay. All files are in the directory of the run.
const nginxHead = `daemon off;
master_process off;
pid DIR/NAME.pid;
error_log stderr emerg;
worker_rlimit_nofile 8192;
events { worker_connections 8192; }
http {
	access_log off;
	client_body_temp_path DIR/NAME-body;
	proxy_temp_path DIR/NAME-proxy;
	fastcgi_temp_path DIR/NAME-fastcgi;
	uwsgi_temp_path DIR/NAME-uwsgi;
	scgi_temp_path DIR/NAME-scgi;
	default_type application/json;
	tcp_nodelay on;
	keepalive_timeout 1h;
	keepalive_requests 1000000000;
	client_header_buffer_size 16k;
	client_body_buffer_size 64k;
`

func nginx(name, conf string, p place) (argv, env []string, err error) {
	path, err := installed("nginx")
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(p.dir, name+".conf")
	if err := writeConf(file, nginxHead+conf, name, p); err != nil {
		return nil, nil, err
	}
	return []string{path, "-p", p.dir, "-e", "stderr", "-c", file}, nil, nil
}

func nginxProxy(p place) (argv, env []string, err error) {
	listen := "listen LISTEN;"
	if p.tls {
		listen = "listen LISTEN ssl; ssl_certificate CERT; ssl_certificate_key KEY; ssl_protocols TLSv1.3;"
	}
	return nginx("nginx", `	upstream target { server TARGET; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }
	server {
		`+listen+`
		location / {
			proxy_pass http://target;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Host $http_host;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_buffers 16 16k;
			proxy_max_temp_file_size 0;
		}
	}
}
`, p)
}

func nginxTarget(p place) (argv, env []string, err error) {
	return nginx("target", `	sendfile on;
	open_file_cache max=100;
	server {
		listen LISTEN;
		root DIR/www;
		location = /files/swallow { return 200 "`+strings.TrimSpace(swallowed)+`\n"; }
	}
}
`, p)
}

func haproxy(p place) (argv, env []string, err error) {
	path, err := installed("haproxy")
	if err != nil {
		return nil, nil, err
	}
	bind := "bind LISTEN"
	if p.tls {
		bind = "bind LISTEN ssl crt DIR/both.pem ssl-min-ver TLSv1.3 alpn http/1.1"
	}
	file := filepath.Join(p.dir, "haproxy.conf")
	if err := writeConf(file, `global
	nbthread 1
	maxconn 4000
defaults
	mode http
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	option forwardfor
	http-reuse always
listen proxy
	`+bind+`
	server target TARGET pool-max-conn 1024
`, "haproxy", p); err != nil {
		return nil, nil, err
	}
	return []string{path, "-db", "-f", file}, nil, nil
}

func writeConf(file, conf, name string, p place) error {
	conf = strings.NewReplacer("LISTEN", p.listen, "TARGET", p.target, "DIR", p.dir, "NAME", name, "CERT", p.cert(), "KEY", p.key()).Replace(conf)
	return os.WriteFile(file, []byte(conf), 0o600)
}
