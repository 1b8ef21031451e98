package gateway_test

import (
	"bufio"
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// reading is how http.ReadResponse reads an answer to a GET.
type reading struct {
	refused bool
	status  string
	body    string
	whole   bool
	bounded bool // the end of the connection is not the end of the body
	more    bool // bytes stand behind it
	problem bool // it looks like one of the gateway's own
}

func readByStandard(data []byte) (r reading) {
	br := bufio.NewReaderSize(bytes.NewReader(data), len(data)+16)
	for {
		res, err := http.ReadResponse(br, nil)
		switch {
		case err != nil || res.StatusCode < 100 || res.StatusCode == http.StatusSwitchingProtocols: // nobody asks for that
			return reading{refused: true}
		case res.StatusCode < 200:
			continue
		}
		body, err := io.ReadAll(res.Body)
		return reading{
			status: strconv.Itoa(res.StatusCode), body: string(body), whole: err == nil,
			bounded: res.ContentLength >= 0 || len(res.TransferEncoding) > 0 || res.Body == http.NoBody,
			more:    br.Buffered() > 0,
			problem: strings.Contains(res.Header.Get("Content-Type"), "problem"),
		}
	}
}

// FuzzBadAnswer sends anything for an answer, over both transports. The client gets well-formed HTTP: the status and the
// body that http.ReadResponse reads, or a beginning of it that is visibly cut off, or 502. Whoever asks next gets its
// own answer, also where the target stays connected.
func FuzzBadAnswer(f *testing.F) {
	for _, tt := range badAnswers() {
		if len(tt.send) < 4096 {
			f.Add([]byte(tt.send))
		}
	}
	log.SetOutput(io.Discard) // net/http logs what comes after an answer
	f.Cleanup(func() { log.SetOutput(os.Stderr) })
	type answer struct {
		send  string
		stays bool
	}
	var current atomic.Pointer[answer]
	targets := make(map[string]*badTarget)
	for name, transport := range gateway.TransportsUnderTest() {
		targets[name] = &badTarget{odd: func(string) (string, bool) {
			a := current.Load()
			return a.send, a.stays
		}}
		targets[name].start(f, transport)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return // no more than the header may have, in all of its readings
		}
		want := readByStandard(data)
		if want.problem {
			return
		}
		for name, b := range targets {
			// A connection on which more is to come would have the client wait. One with more behind the answer may
			// serve the next request over net/http, see TestNoRequestGetsAnothersAnswer.
			stays := want.whole && want.bounded && !(want.more && name == "net/http")
			current.Store(&answer{string(data), stays})
			client := b.dial(t)
			client.Conn.(*net.TCPConn).SetLinger(0) // or ports run out
			got := client.ask(t, "GET", "/odd")
			status, body, _ := strings.Cut(got, " ")
			part, isCut := strings.CutSuffix(body, " cut")
			switch {
			case got == "502":
			case want.refused, status != want.status, !strings.HasPrefix(want.body, part), !isCut && (!want.whole || part != want.body):
				t.Errorf("over %s the client got %q, want %+v", name, got, want)
			}
			if isCut {
				client.Close()
				client = b.dial(t)
			}
			if got := client.ask(t, "GET", "/next/0"); got != "200 next 0" {
				t.Errorf("over %s the next client got %q", name, got)
			}
			client.Close()
		}
	})
}
