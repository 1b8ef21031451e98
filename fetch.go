package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// fetcher reads small documents from a server that is believed in what it says, but not trusted to be
// quick, brief or where it was.
type fetcher struct {
	client   *http.Client
	timeout  time.Duration
	maxBytes int64
}

// newFetcher takes a copy of client, nil for the default, with a rule for redirects.
func newFetcher(client *http.Client, maxBytes int64) *fetcher {
	const usual = 5 * time.Second
	c := http.Client{Timeout: usual}
	if client != nil {
		c = *client
	}
	if c.Timeout <= 0 {
		c.Timeout = usual
	}
	own := c.CheckRedirect
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
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
	return &fetcher{&c, c.Timeout, maxBytes}
}

// get asks for a document now and then, so it leaves no connection open.
func (f *fetcher) get(ctx context.Context, u *url.URL) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Close = true
	return f.do(req)
}

// do sends req and reads the body of a 200.
func (f *fetcher) do(req *http.Request) ([]byte, http.Header, error) {
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s answers with status %d", req.URL.Redacted(), resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, f.maxBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(body)) > f.maxBytes {
		return nil, nil, fmt.Errorf("%s answers with more than %d bytes", req.URL.Redacted(), f.maxBytes)
	}
	return body, resp.Header, nil
}

// parseSecureURL reads a URL from which keys or verdicts may come: https, or http on loopback.
func parseSecureURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Hostname() == "":
		return nil, errors.New("the URL has no host")
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
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
