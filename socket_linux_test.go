package gateway_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// TestSocketBacklog sends many requests at once to a server that lets one connection wait. The kernel
// refuses the others for the moment, and they are dialed again: a crowd of clients does not make the
// target look sick.
func TestSocketBacklog(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	const crowd = 20
	refused := make(chan bool)
	var serving sync.WaitGroup
	serving.Go(func() {
		<-refused
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				}
			})
		}
	})
	up := gateway.NewUpstream("app", gateway.MustTargets("unix://"+path), &gateway.UpstreamOptions{Transport: newTransport(t, nil)})
	var all sync.WaitGroup
	for range crowd {
		all.Go(func() {
			if got := recorded(gateway.Proxy(up, nil), nil).Code; got != 200 {
				t.Errorf("status %d", got)
			}
		})
	}
	// Until the kernel refuses a dial.
	for {
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		conn.Close()
	}
	close(refused)
	all.Wait()
	l.Close()
	serving.Wait()
}
