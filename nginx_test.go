package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// nginxBefore is the location with which nginx passes everything to backend. What nginx itself reads of a request it tells
// the backend in X-Nginx-User, -Uri and -Length.
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

// startNginx runs nginx with these locations on a loopback port, and returns its URL. The test is skipped where there is
// no nginx.
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
