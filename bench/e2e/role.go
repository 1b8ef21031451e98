//go:build linux

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"syscall"
)

// handlers are the roles of this program that net/http serves.
var handlers = map[string]func(target, dir string) (http.Handler, error){
	"target":          targetHandler,
	reference:         func(target, _ string) (http.Handler, error) { return tunedReverseProxy(target), nil },
	"floor":           floorHandler,
	"gateway":         gatewayHandler(bare),
	"gateway-all":     gatewayHandler(everyConcern),
	"gateway-metrics": gatewayHandler(everyConcernAndMetrics),
	"handmade":        handmadeHandler,
}

// play serves a role until the process is ended.
func play(args []string) error {
	if len(args) != 5 {
		return errRole
	}
	name, scheme, listen, target, dir := args[0], args[1], args[2], args[3], args[4]
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	if scheme == "https" {
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	}
	if name == "fasthttp" {
		return serveFasthttp(l, target)
	}
	build, ok := handlers[name]
	if !ok {
		return fmt.Errorf("no role %q", name)
	}
	h, err := build(target, dir)
	if err != nil {
		return err
	}
	if file := os.Getenv(profileEnv); file != "" {
		if err := profile(file); err != nil {
			return err
		}
	}
	return (&http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}).Serve(l)
}

// profileEnv names the file that a contender of this program writes its CPU profile to.
const profileEnv = "E2E_CPUPROFILE"

// profile writes a CPU profile of the process from now until it is ended by SIGTERM.
func profile(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		pprof.StopCPUProfile()
		f.Close()
		os.Exit(0)
	}()
	return nil
}

// tokenKey is the key that tokens are verified by.
func tokenKey(dir string) (any, error) {
	b, err := os.ReadFile(filepath.Join(dir, "token.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("no PEM in token.pem")
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// targetHandler is the target where nginx is not installed.
func targetHandler(_, dir string) (http.Handler, error) {
	mux := http.NewServeMux()
	for name := range files {
		body, err := os.ReadFile(filepath.Join(dir, "www", "files", name))
		if err != nil {
			return nil, err
		}
		length := []string{strconv.Itoa(len(body))}
		mux.HandleFunc("GET /files/"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = []string{"application/json"}
			w.Header()["Content-Length"] = length
			w.Write(body)
		})
	}
	mux.HandleFunc("POST /files/swallow", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, swallowed)
	})
	return mux, nil
}
