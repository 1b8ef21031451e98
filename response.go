package gateway

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// checkResponse returns an error if a response to out cannot be passed on. An Upstream counts that as a
// failure of the target. checkResponse removes leading zeros from Content-Length, which a strict client would
// reject.
func checkResponse(out *http.Request, res *http.Response) error {
	code := res.StatusCode
	if code == http.StatusSwitchingProtocols {
		_, err := agreedProtocol(out, res)
		return err
	}
	if code < 200 || code > 999 {
		return fmt.Errorf("%w: status %d", ErrBadGateway, code)
	}
	lengths := res.Header["Content-Length"]
	if len(lengths) == 0 {
		return nil
	}
	length := lengths[0]
	if len(lengths) > 1 || !isDigits(length) {
		// Over HTTP/2 such a field does no harm, but the client may use HTTP/1.1, where it frames the body.
		return fmt.Errorf("%w: Content-Length %q", ErrBadGateway, lengths)
	}
	if last := len(length) - 1; length[0] == '0' && last > 0 { // some clients would read it as octal
		res.Header["Content-Length"] = []string{strings.TrimLeft(length[:last], "0") + length[last:]}
	}
	return nil
}

// agreedProtocol returns the protocol of a 101. It returns an error if the request did not offer it.
func agreedProtocol(out *http.Request, res *http.Response) (string, error) {
	offered, agreed := out.Header["Upgrade"], httpfield.UpgradeProtocols(res.Header)
	if agreed == "" || !httpfield.HasToken(offered, agreed) {
		return "", fmt.Errorf("%w: switched to protocol %q, but the request offered %q", ErrBadGateway, agreed, offered)
	}
	return agreed, nil
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
