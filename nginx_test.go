package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// nginxBefore is the location with which nginx passes everything to backend. What nginx itself reads of a
// request it tells the backend in X-Nginx-User, -Uri and -Length.
func nginxBefore(backend string) string {
	return fmt.Sprintf(`
		location / {
			proxy_pass %s;
			proxy_set_header X-Nginx-User $http_x_user_id;
			proxy_set_header X-Nginx-Uri $request_uri;
			proxy_set_header X-Nginx-Length $content_length;
		}
`, backend)
}

// startNginx runs nginx with these locations on a loopback port, and returns its URL. The test is skipped
// where there is no nginx.
func startNginx(t *testing.T, locations string) string {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // where Debian has it, which is not in everybody's PATH
		if _, err := os.Stat(path); err != nil {
			t.Skip("nginx is not installed: apt-get install nginx-light")
		}
	}
	for try := 0; ; try++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		if runNginx(t, path, addr, locations) {
			return "http://" + addr
		}
		if try == 3 {
			t.Fatal("nginx does not start")
		}
	}
}

func runNginx(t *testing.T, path, addr, locations string) bool {
	dir := t.TempDir()
	config := fmt.Sprintf(`
daemon off;
master_process off;
pid nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	client_max_body_size 0;
	underscores_in_headers on;
	ignore_invalid_headers off;
	server {
		listen %s;
		%s
	}
}
`, addr, locations)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-p", dir, "-e", "stderr", "-c", file)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan bool, 1), make(chan bool)
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			// It says its version once it listens.
			if strings.Contains(lines.Text(), " nginx/") {
				ready <- true
			}
		}
		_ = cmd.Wait()
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	select {
	case <-ready:
		t.Cleanup(stop)
		return true
	case <-ended: // somebody else has the port
		return false
	case <-time.After(10 * time.Second):
		stop()
		return false
	}
}

// TestNginxReadsTheSame sends every bad request to nginx behind the gateway: what nginx makes of what goes on
// is what the gateway made of it.
func TestNginxReadsTheSame(t *testing.T) {
	type request struct {
		line   string
		header http.Header
	}
	seen := make(chan request, 10)
	recorder := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("after nginx: %v", err)
		}
		seen <- request{r.Method + " " + r.RequestURI + " HTTP/1.1:" + string(body), r.Header}
		if uri := r.Header.Get("X-Nginx-Uri"); uri != r.RequestURI {
			t.Errorf("nginx read %q and sent %q on", uri, r.RequestURI)
		}
		if n := r.Header.Get("X-Nginx-Length"); n != "" && n != fmt.Sprint(len(body)) {
			t.Errorf("nginx read a length of %s and a body of %d", n, len(body))
		}
	}))
	up := gateway.NewUpstream("nginx", gateway.MustTargets(startNginx(t, nginxBefore(recorder.URL))), nil)
	s := serve(t, gateway.Proxy(up, nil))
	for _, tt := range badRequests() {
		t.Run(tt.name, func(t *testing.T) {
			got := sendBad(t, s.Listener.Addr().String(), tt)
			want, wantSeen := tt.want, tt.seen
			if tt.name == "method in small letters" {
				want, wantSeen = "400 200", "" // nginx refuses it
			}
			if got != want {
				t.Errorf("the client got %s, want %s", got, want)
			}
			var lines []string
			for len(seen) > 0 {
				r := <-seen
				if strings.HasPrefix(r.line, "GET /sentinel ") {
					continue
				}
				line := r.line
				if _, field, ok := strings.Cut(wantSeen, "["); ok {
					name, value, _ := strings.Cut(strings.TrimSuffix(field, "]"), ":")
					if values, ok := r.header[http.CanonicalHeaderKey(name)]; ok && values[0] == strings.TrimSpace(value) || value == "" {
						line += "[" + field
					}
				}
				lines = append(lines, line)
			}
			if got := strings.Join(lines, " "); got != wantSeen {
				t.Errorf("behind nginx came %q, want %q", got, wantSeen)
			}
		})
	}

	// nginx folds underscores into hyphens, as CGI does.
	for _, who := range []string{"", "alice"} {
		h := gateway.Proxy(up, nil)
		if who != "" {
			h = withIdentity(&gateway.Identity{Subject: who})(h)
		}
		s := serve(t, h)
		for _, alias := range aliases("X-User-ID") {
			for _, connection := range []string{"close", "close, " + alias, "close, X-User-ID"} {
				conn := raw(t, s, "GET /p HTTP/1.1\r\nHost: x\r\n"+alias+": mallory\r\nConnection: "+connection+"\r\n\r\n")
				if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
					t.Fatalf("%s: %v, %v", alias, res, err)
				}
				conn.Close()
				if got := (<-seen).header.Get("X-Nginx-User"); got != who {
					t.Errorf("as %q with %s and Connection: %s: nginx saw %q", who, alias, connection, got)
				}
			}
		}
	}
}

// nginxAsking is the configuration for nginx to ask decider about everything before it goes to backend.
func nginxAsking(decider, backend string) string {
	return fmt.Sprintf(`
		location / {
			auth_request /ask;
			auth_request_set $user $upstream_http_x_user_id;
			auth_request_set $groups $upstream_http_remote_groups;
			proxy_set_header X-User-ID $user;
			proxy_set_header Remote-Groups $groups;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $http_connection;
			proxy_pass %s;
		}
		location = /ask {
			internal;
			proxy_pass %s/ask;
			proxy_pass_request_body off;
			proxy_set_header Content-Length "";
			proxy_set_header X-Forwarded-Method $request_method;
			proxy_set_header X-Forwarded-Uri $request_uri;
			proxy_set_header X-Forwarded-Host $http_host;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Original-Method $request_method;
			proxy_set_header X-Original-URL $scheme://$http_host$request_uri;
		}
`, backend, decider)
}

// TestForwardAuthBesideNginx puts the same decider and the same backend behind nginx's auth_request and
// behind ForwardAuth. Both ask the same, let the same requests pass, and tell the backend the same. They
// differ in three points: nginx answers 500 where it cannot tell, has no redirects, and keeps the cookies
// of the decider for itself.
func TestForwardAuthBesideNginx(t *testing.T) {
	asked, reached := make(chan string, 10), make(chan string, 10)
	decider := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		question := r.Method + " " + r.RequestURI
		for _, name := range []string{"X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For",
			"X-Original-Method", "X-Original-Url", "Cookie", "Authorization", "Content-Length", "Upgrade"} {
			question += " " + strings.Join(r.Header[name], "|")
		}
		asked <- question
		h := w.Header()
		switch cookie := r.Header.Get("Cookie"); cookie {
		case "user=ann":
			h.Set("X-User-ID", "ann")
			h.Set("Remote-Groups", "a,b")
			h.Set("X-Not-Asked", "1")
			w.WriteHeader(http.StatusNoContent)
		case "anonymous":
		case "302":
			http.Redirect(w, r, "https://login.example/", http.StatusFound)
		case "drop":
			panic(http.ErrAbortHandler)
		case "":
			h.Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			status, _ := strconv.Atoi(cookie)
			w.WriteHeader(status)
		}
	}))
	decider.Config.ErrorLog = log.New(io.Discard, "", 0)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		reached <- fmt.Sprintf("%s %s %s user=%s groups=%s other=%s", r.Method, r.RequestURI, body, r.Header.Get("X-User-ID"), r.Header.Get("Remote-Groups"), r.Header.Get("X-Not-Asked"))
		if r.Header.Get("Upgrade") != "" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				conn.Close()
			}
		}
	}))
	nginx := strings.TrimPrefix(startNginx(t, nginxAsking(decider.URL, backend.URL)), "http://")
	up := func(url string) *gateway.Upstream {
		return gateway.NewUpstream("u", gateway.MustTargets(url), &gateway.UpstreamOptions{Transport: newTransport(t, nil)})
	}
	own := serve(t, gateway.ForwardAuth(up(decider.URL), &gateway.ForwardAuthOptions{Path: "/ask", Copy: []string{"Remote-Groups"}})(gateway.Proxy(up(backend.URL), nil)))
	for _, tt := range []struct {
		name, request string
		nginx, own    int // statuses
		reached       string
	}{
		{"a session", "GET /a%2Fb?x=1 HTTP/1.1\r\nCookie: user=ann\r\n\r\n", 200, 200, "GET /a%2Fb?x=1  user=ann groups=a,b other="},
		{"a body", "POST /x HTTP/1.1\r\nCookie: user=ann\r\nContent-Length: 4\r\n\r\nbody", 200, 200, "POST /x body user=ann groups=a,b other="},
		{"forged fields", "GET /x HTTP/1.1\r\nCookie: user=ann\r\nX-User-ID: root\r\nRemote-Groups: root\r\nX-Forwarded-Uri: /public\r\nX-Original-URL: http://x/\r\n\r\n", 200, 200, "GET /x  user=ann groups=a,b other="},
		{"forged fields, anonymous", "GET /x HTTP/1.1\r\nCookie: anonymous\r\nX-User-ID: root\r\nRemote-Groups: root\r\n\r\n", 200, 200, "GET /x  user= groups= other="},
		{"a WebSocket", "GET /ws HTTP/1.1\r\nCookie: user=ann\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 101, 101, "GET /ws  user=ann groups=a,b other="},
		{"a WebSocket, refused", "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 401, 401, ""},
		{"a preflight", "OPTIONS /x HTTP/1.1\r\nOrigin: http://app.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n", 401, 401, ""},
		{"nobody", "GET /x HTTP/1.1\r\n\r\n", 401, 401, ""},
		{"401", "GET /x HTTP/1.1\r\nCookie: 401\r\n\r\n", 401, 401, ""},
		{"403", "PUT /x HTTP/1.1\r\nCookie: 403\r\nContent-Length: 4\r\n\r\nbody", 403, 403, ""},
		{"206", "GET /x HTTP/1.1\r\nCookie: 206\r\n\r\n", 200, 200, "GET /x  user= groups= other="},
		{"a login page", "GET /x HTTP/1.1\r\nCookie: 302\r\n\r\n", 500, 302, ""},
		{"404", "GET /x HTTP/1.1\r\nCookie: 404\r\n\r\n", 500, 503, ""},
		{"429", "GET /x HTTP/1.1\r\nCookie: 429\r\n\r\n", 500, 503, ""},
		{"500", "GET /x HTTP/1.1\r\nCookie: 500\r\n\r\n", 500, 503, ""},
		{"no answer", "GET /x HTTP/1.1\r\nCookie: drop\r\n\r\n", 500, 503, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var questions []string
			for _, side := range []struct {
				addr string
				want int
			}{{nginx, tt.nginx}, {own.Listener.Addr().String(), tt.own}} {
				conn := must(net.Dial("tcp", side.addr))
				defer conn.Close()
				conn.SetDeadline(deadline())
				line, rest, _ := strings.Cut(tt.request, "\r\n")
				io.WriteString(conn, line+"\r\nHost: gw.example\r\n"+rest)
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || res.StatusCode != side.want {
					t.Fatalf("at %s: %v, %v, want %d", side.addr, res, err, side.want)
				}
				if tt.name == "nobody" && res.Header.Get("WWW-Authenticate") != `Basic realm="x"` {
					t.Errorf("at %s: %v", side.addr, res.Header)
				}
				questions = append(questions, <-asked)
				for len(asked) > 0 {
					<-asked // sent again after the drop
				}
				got := ""
				if len(reached) > 0 {
					got = <-reached
				}
				if got != tt.reached {
					t.Errorf("at %s: the backend saw %q, want %q", side.addr, got, tt.reached)
				}
			}
			if questions[0] != questions[1] && tt.request[:7] != "GET /ws" { // nginx passes Upgrade on to the decider
				t.Errorf("nginx asked %q\n  we asked %q", questions[0], questions[1])
			}
		})
	}
}
