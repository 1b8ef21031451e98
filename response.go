package gateway

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// checkResponse returns why a response to out cannot be passed on, and nil when it can. An Upstream counts
// such a response as a failure of the target. checkResponse repairs what a strict client would reject and
// what has only one meaning.
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
		// HTTP/2 does not frame by Content-Length, but the client's HTTP/1.1 does.
		return fmt.Errorf("%w: Content-Length %q", ErrBadGateway, lengths)
	}
	if last := len(length) - 1; length[0] == '0' && last > 0 { // some would read it as octal
		res.Header["Content-Length"] = []string{strings.TrimLeft(length[:last], "0") + length[last:]}
	}
	return nil
}

// agreedProtocol returns the protocol of a 101, which must be one that the request offered.
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
