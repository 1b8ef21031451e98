package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// load are the clients and the thief, and what they saw.
type load struct {
	*provider
	notes string // where the gateway has them
	http  *http.Client

	mu        sync.Mutex
	tokens    int           // issued
	valid     int           // requests with a token that was valid from the question to the answer
	whileAway int           // of them, sent while the provider was away
	refused   int           // of them, answered with anything but the caller's notes
	firstNo   string        // what the first of those was told
	thefts    []*theft      // one for each key that was used
	stale     int           // requests that were sent with a withdrawn key's token
	staleNo   int           // of them, refused
	believed  time.Duration // longest time after its withdrawal that a key's token was taken
	again     int           // tokens of withdrawn keys that were taken after one had been refused
}

// token is one as its owner keeps it.
type token struct {
	text    string
	subject string
	until   time.Time // when it is valid no more
}

// theft is a copied signing key.
type theft struct {
	key     int
	refused bool // at last, after it was withdrawn
}

// tokenUses is for how many requests a client uses a token.
const tokenUses = 50

// run lets everybody loose for as long as the plan says.
func (l *load) run(ctx context.Context) {
	working, stop := context.WithDeadline(ctx, l.start.Add(l.length))
	defer stop()
	var wg sync.WaitGroup
	for n := range l.clients {
		wg.Go(func() { l.client(ctx, working, fmt.Sprint("client-", n)) })
	}
	// A thief copies each key when it is used first.
	for n := 0; working.Err() == nil; n++ {
		pause(working, time.Until(l.start.Add(time.Duration(n)*l.rotate)))
		if working.Err() == nil {
			t := &theft{key: n}
			l.thefts = append(l.thefts, t)
			wg.Go(func() { l.thief(ctx, working, t) })
		}
	}
	wg.Wait()
}

// client asks for its notes until working ends. It has the next token ready before the last one is used up,
// so that there is one that the gateway has never seen when the provider goes away.
func (l *load) client(ctx, working context.Context, name string) {
	var next token
	for working.Err() == nil {
		now := next
		if t, err := l.fetch(ctx, name); err == nil {
			next = t
		}
		for range tokenUses {
			if working.Err() != nil || !time.Now().Before(now.until) {
				break
			}
			l.ask(ctx, now)
		}
		if !time.Now().Before(next.until) {
			pause(working, 5*time.Millisecond) // nothing to ask with
		}
	}
}

// thief signs with a key that is not his: one token in advance and one for each round. While the key is
// published nobody can tell, so his tokens are valid ones, too. After that he goes on until he is refused,
// and at least until working ends.
func (l *load) thief(ctx, working context.Context, t *theft) {
	withdrawn := l.withdrawn(t.key)
	signed := func() token {
		text, err := l.sign(t.key, "thief", withdrawn.Add(time.Hour))
		if err != nil {
			panic(err) // only of a key that does not suit ES256
		}
		return token{text, "thief", withdrawn}
	}
	hopeless := l.hopeless(t.key)
	old := signed()
	for ctx.Err() == nil {
		for _, token := range []token{old, signed()} {
			if sent := time.Now(); sent.Before(withdrawn) {
				l.ask(ctx, token)
			} else {
				l.tryWithdrawn(ctx, t, token, sent.Sub(withdrawn))
			}
		}
		now := time.Now()
		if working.Err() != nil && (t.refused || now.Before(withdrawn) || now.After(hopeless)) {
			return
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// hopeless is when the gateway ought to know at last that key n is withdrawn: it may have asked just before, may
// find the provider away then, and the machine may be busy.
func (l *load) hopeless(n int) time.Time {
	return l.withdrawn(n).Add(2*l.period() + l.down + 5*time.Second)
}

// ask sends a token that is valid now, and counts what comes of it if it still is when the answer is there.
func (l *load) ask(ctx context.Context, t token) {
	sent := time.Now()
	answer, ok := l.send(ctx, t)
	if ctx.Err() != nil || time.Now().After(t.until) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.valid++
	if l.away(sent) {
		l.whileAway++
	}
	if !ok {
		l.refused++
		l.firstNo = cmp.Or(l.firstNo, fmt.Sprintf("signed with %s, %v after the start: %s",
			signedWith(t.text), sent.Sub(l.start).Round(time.Millisecond), answer))
	}
}

// tryWithdrawn sends a token whose key was withdrawn that long ago.
func (l *load) tryWithdrawn(ctx context.Context, t *theft, token token, ago time.Duration) {
	answer, ok := l.send(ctx, token)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stale++
	switch {
	case ok && t.refused:
		l.again++
	case ok:
		l.believed = max(l.believed, ago)
	case strings.HasPrefix(answer, "401 "):
		l.staleNo++
		t.refused = true
	}
}

// send asks for the notes. It returns the status and the answer, and whether these are the notes of the
// token's subject.
func (l *load) send(ctx context.Context, t token) (answer string, ok bool) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, l.notes, nil)
	if err != nil {
		return err.Error(), false
	}
	r.Header.Set("Authorization", "Bearer "+t.text)
	status, body, err := l.do(r)
	if err != nil {
		return err.Error(), false
	}
	return fmt.Sprintf("%d %s", status, bytes.TrimSpace(body)), status == http.StatusOK && string(body) == "the notes of "+t.subject+"\n"
}

// fetch gets a token from the provider.
func (l *load) fetch(ctx context.Context, client string) (token, error) {
	form := url.Values{"grant_type": {"client_credentials"}}.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+tokenPath, strings.NewReader(form))
	if err != nil {
		return token{}, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(client, clientSecret)
	asked := time.Now()
	status, body, err := l.do(r)
	if err != nil {
		return token{}, err
	}
	var answer struct {
		Token     string  `json:"access_token"`
		ExpiresIn float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusOK || answer.Token == "" {
		return token{}, errors.New("no token")
	}
	l.mu.Lock()
	l.tokens++
	l.mu.Unlock()
	return token{answer.Token, client, asked.Add(time.Duration(answer.ExpiresIn * float64(time.Second)))}, nil
}

// signedWith is the kid of a token.
func signedWith(text string) any {
	t, _, err := jwt.NewParser().ParseUnverified(text, jwt.MapClaims{})
	if err != nil {
		return err
	}
	return t.Header["kid"]
}

func (l *load) do(r *http.Request) (status int, body []byte, err error) {
	res, err := l.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, body, err
}

// pause waits for d, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// print writes the table.
func (l *load) print(out io.Writer) {
	fmt.Fprintf(out, "Provider: a new key every %v, published %v before its use, withdrawn %v after it; max-age %v; away for %v.\n",
		l.rotate, l.ahead, l.keep(), l.maxAge, l.down)
	from := fmt.Sprintf("NewJWKS with MinInterval %v", l.minInterval)
	if l.minInterval == 0 {
		from = "NewOIDC"
	}
	fmt.Fprintf(out, "Gateway: %s, which asks for the key set every %v.\n\n", from, l.period())
	withdrawn := 0
	for _, t := range l.thefts {
		if t.refused {
			withdrawn++
		}
	}
	for _, row := range []struct {
		what string
		seen any
	}{
		{"keys used", len(l.thefts)},
		{"key sets fetched", l.keySets.Load()},
		{"  asked for while the provider was away", l.missed.Load()},
		{"tokens issued", l.tokens},
		{"requests with a valid token", l.valid},
		{"  while the provider was away", l.whileAway},
		{"  refused", l.refused},
		{"keys withdrawn, and then refused", withdrawn},
		{"  longest time that one was still believed", l.believed.Round(time.Millisecond)},
		{"requests with a withdrawn key's token", l.stale},
		{"  refused", l.staleNo},
	} {
		fmt.Fprintf(out, "%-44s %8v\n", row.what, row.seen)
	}
	fmt.Fprintln(out)
}

var errTooShort = errors.New("too short a run to tell")

// verdict says whether all was as it must be.
func (l *load) verdict(out io.Writer) error {
	now := time.Now()
	switch {
	case l.valid == 0 || l.down > 0 && l.whileAway == 0:
		return errTooShort
	case l.refused > 0:
		return fmt.Errorf("%d requests with a valid token were refused; the first, %s", l.refused, l.firstNo)
	}
	fmt.Fprintln(out, "no valid token was refused")
	if l.again > 0 {
		return fmt.Errorf("%d tokens of withdrawn keys were taken after others had been refused", l.again)
	}
	for _, t := range l.thefts {
		if !t.refused && now.After(l.hopeless(t.key)) {
			return fmt.Errorf("%s was withdrawn %v ago and is still believed", keyID(t.key), now.Sub(l.withdrawn(t.key)))
		}
	}
	return nil
}
