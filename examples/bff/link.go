package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// link is a slow way from a client to the servers. What is sent over it arrives half of the delay later, on either way,
// and a connection takes the delay to be opened, as with TCP.
type link struct {
	delay    time.Duration // there and back
	received atomic.Int64  // bytes that came to the client: heads and bodies
}

// client returns a client at the far end of the link.
func (l *link) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: l.dial, DisableCompression: true}}
}

func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	server, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(l.delay):
	case <-ctx.Done():
		server.Close()
		return nil, ctx.Err()
	}
	client, near := net.Pipe()
	go l.carry(server, near, nil)
	go l.carry(near, server, &l.received)
	return client, nil
}

// carry takes what comes from one end to the other, where it arrives late.
func (l *link) carry(to io.WriteCloser, from io.ReadCloser, count *atomic.Int64) {
	type packet struct {
		due  time.Time
		data []byte
	}
	way := make(chan packet, 1024)
	go func() {
		defer to.Close()
		defer from.Close()
		for p := range way {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
				for range way { // until the reader sees that it is closed
				}
				return
			}
		}
	}()
	defer close(way)
	for {
		data := make([]byte, 16<<10)
		n, err := from.Read(data)
		if n > 0 {
			if count != nil {
				count.Add(int64(n))
			}
			way <- packet{time.Now().Add(l.delay / 2), data[:n]}
		}
		if err != nil {
			return
		}
	}
}
