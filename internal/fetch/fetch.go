// Package fetch fetches small documents over HTTP: key sets, discovery documents, and introspection answers.
// The content of the server is trusted. Its speed, the size of its answers and its redirects are not, so all
// three are limited.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Client reads documents. It is safe for concurrent use.
type Client struct {
	client   http.Client
	maxBytes int64
}

// NewClient returns a Client that sends requests as client does and refuses bodies above maxBytes. It works
// on a copy of client; nil means http.DefaultTransport. A client without a timeout gets one of 5 seconds.
//
// Up to three redirects are followed, and only within the scheme and host of the first request. The
// CheckRedirect of client is asked as well.
func NewClient(client *http.Client, maxBytes int64) *Client {
	c := &Client{maxBytes: maxBytes}
	if client != nil {
		c.client = *client
	}
	if c.client.Timeout <= 0 {
		c.client.Timeout = 5 * time.Second
	}
	own := c.client.CheckRedirect
	c.client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		switch {
		case req.URL.Host != first.Host || req.URL.Scheme != first.Scheme:
			return errors.New("redirect to another host")
		case len(via) > 3:
			return errors.New("too many redirects")
		case own != nil:
			return own(req, via)
		}
		return nil
	}
	return c
}

// Timeout returns the time that a request has, from its start to the end of its body.
func (c *Client) Timeout() time.Duration { return c.client.Timeout }

// Get reads the JSON document at u and returns it with the header of the response. Documents are read seldom,
// so it does not keep the connection.
func (c *Client) Get(ctx context.Context, u *url.URL) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Close = true
	return c.Do(req)
}

// Do sends req and returns the body and the header of the response. A status other than 200 is an error, and
// so is a panic of the client's transport, since other goroutines may wait for the document.
func (c *Client) Do(req *http.Request) (body []byte, header http.Header, err error) {
	defer func() {
		if p := recover(); p != nil {
			body, header, err = nil, nil, fmt.Errorf("panic: %v", p)
		}
	}()
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody) // so that the connection can be used again
		return nil, nil, fmt.Errorf("%s answers with status %d", req.URL.Redacted(), resp.StatusCode)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, min(c.maxBytes, math.MaxInt64-1)+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(body)) > c.maxBytes {
		return nil, nil, fmt.Errorf("%s answers with more than %d bytes", req.URL.Redacted(), c.maxBytes)
	}
	return body, resp.Header, nil
}

// maxErrorBody is how many bytes of the body of an error response are read.
const maxErrorBody = 16 << 10

// ParseURL parses a URL for keys or token verdicts. The scheme must be https, or http for a loopback host.
// With allowHTTP, http is accepted for any host.
func ParseURL(raw string, allowHTTP bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Hostname() == "":
		return nil, errors.New("the URL has no host")
	case u.Scheme == "https", u.Scheme == "http" && (allowHTTP || isLoopback(u.Hostname())):
		return u, nil
	}
	return nil, fmt.Errorf("%s is neither https nor on loopback", u.Redacted())
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
