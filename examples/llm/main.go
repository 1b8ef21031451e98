// Llm limits what each user of a language model spends, in tokens. How many a request costs is known only when its
// answer has ended. So the gateway reserves what the request may cost at most, reads from the answer what it did cost,
// and gives the rest back. If it charged only afterwards, all the requests that come at once would pass before the first
// of them was counted.
//
//	go run ./examples/llm
//
// The gateway itself is newGateway; the rest is a fake of an OpenAI-compatible server, and users.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-96248d0c/gateway"
)

const tokensPerMinute = 3000

// newGateway returns a gateway before the server at target. Each API key may spend tokensPerMinute.
func newGateway(target string, budget gateway.Limiter, transport http.RoundTripper, logger *slog.Logger) http.Handler {
	model := gateway.NewUpstream("model", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport})
	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: logger}),
		// In earnest, Auth stands here, and the key is KeyBySubject.
		gateway.RateLimit(budget, gateway.KeyByHeader("Authorization"), &gateway.RateLimitOptions{
			Name:   "tokens",
			Cost:   estimate,
			Settle: settle,
		}),
	)
	rt.Handle("POST /v1/chat/completions", gateway.Proxy(model, &gateway.ProxyOptions{
		// It reads the last event of a stream that has usage, or the whole answer, as it passes.
		ModifyResponse: gateway.UnitsFrom("/usage/total_tokens"),
	}))
	return &rt
}

// chat is what the gateway reads of a request.
type chat struct {
	MaxTokens int `json:"max_tokens"`
	Messages  []struct {
		Content string `json:"content"`
	} `json:"messages"`
	Stream        bool `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

// estimatedBody is a request's body, of which the gateway has read the beginning.
type estimatedBody struct {
	io.Reader
	io.Closer
	tokens int // that were reserved
}

// estimate returns the most that a request can cost: a token for each three bytes of the prompt, and max_tokens. It has
// to read the body for that, within a bound, and puts it back.
func estimate(r *http.Request) int {
	const most = 1 << 20
	body, err := io.ReadAll(io.LimitReader(r.Body, most))
	tokens := tokensPerMinute // nobody knows: only a user with the whole budget may try
	var c chat
	if err == nil && json.Unmarshal(body, &c) == nil && c.MaxTokens > 0 && c.MaxTokens < tokensPerMinute {
		tokens = c.MaxTokens
		for _, m := range c.Messages {
			tokens += len(m.Content)/3 + 4
		}
	}
	tokens = min(tokens, tokensPerMinute)
	r.Body = &estimatedBody{io.MultiReader(bytes.NewReader(body), r.Body), r.Body, tokens}
	return tokens
}

// settle returns what the request did cost. Where the model served it and did not say, as when a client leaves in the
// middle of a stream, the estimate stands.
func settle(r *http.Request, u gateway.Usage) int {
	switch {
	case u.Units > 0:
		return int(u.Units)
	case u.Status >= 400 && u.Outcome != gateway.OutcomeClientCanceled:
		return 0
	}
	if body, ok := r.Body.(*estimatedBody); ok {
		return body.tokens
	}
	return tokensPerMinute
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, slog.New(slog.DiscardHandler)); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer, logger *slog.Logger) error {
	model := httptest.NewServer(http.HandlerFunc(fakeModel))
	defer model.Close()
	transport := gateway.NewTransport(nil)
	if closer, ok := transport.(interface{ CloseIdleConnections() }); ok {
		defer closer.CloseIdleConnections()
	}
	budget := gateway.NewTokenBucket(tokensPerMinute/60., tokensPerMinute, nil)
	front := httptest.NewServer(newGateway(model.URL, budget, transport, logger))
	defer front.Close()

	fmt.Fprintf(out, "A user may spend %d tokens, and get them back at %d a second.\n\n", tokensPerMinute, tokensPerMinute/60)
	answer, err := ask(ctx, front, "Bearer alice", false)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "alice asks once: %s\n  reserved are 300 tokens at most, used %d, and %s\n\n", answer.status, answer.tokens, answer.limit)

	const users = 40
	answers := make([]answered, users)
	errs := make([]error, users)
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() { answers[i], errs[i] = ask(ctx, front, "Bearer bob", true) })
	}
	wg.Wait()
	served, tokens, retry := 0, 0, ""
	for _, a := range answers {
		if a.code == http.StatusOK {
			served++
			tokens += a.tokens
		} else {
			retry = a.retryAfter
		}
	}
	fmt.Fprintf(out, "bob sends %d streams at once: %d are served, and use %d tokens; %d get 429, Retry-After %ss\n", users, served, tokens, users-served, retry)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if tokens > tokensPerMinute {
		return fmt.Errorf("%d tokens were used, of %d", tokens, tokensPerMinute)
	}
	again, err := ask(ctx, front, "Bearer bob", true)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "bob asks again, as what they did not use has been given back: %s, %s\n", again.status, again.limit)
	return nil
}

// answered is what a user sees.
type answered struct {
	status, limit, retryAfter string
	code, tokens              int
}

func ask(ctx context.Context, front *httptest.Server, key string, stream bool) (answered, error) {
	body := fmt.Sprintf(`{"model":"m","max_tokens":280,"stream":%t,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Why is the sky blue? In a few words."}]}`, stream)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, front.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return answered{}, err
	}
	req.Header.Set("Authorization", key)
	res, err := front.Client().Do(req)
	if err != nil {
		return answered{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	a := answered{status: res.Status, code: res.StatusCode, limit: "RateLimit: " + res.Header.Get("RateLimit"), retryAfter: res.Header.Get("Retry-After")}
	if at := bytes.LastIndex(text, []byte(`"total_tokens":`)); at >= 0 {
		_, _ = fmt.Sscanf(string(text[at:]), `"total_tokens":%d`, &a.tokens)
	}
	return a, err
}

// fakeModel answers as an OpenAI-compatible server does, with about a third of the tokens that it may use.
func fakeModel(w http.ResponseWriter, r *http.Request) {
	var c chat
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil || len(c.Messages) == 0 {
		http.Error(w, `{"error":"malformed"}`, http.StatusBadRequest)
		return
	}
	const words = "It is sunlight, scattered by the air, and blue light is scattered most."
	usage := fmt.Sprintf(`{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}`, c.MaxTokens/3, c.MaxTokens/3+12)
	if !c.Stream {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":%q}}],"usage":%s}`, words, usage)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for word := range strings.FieldsSeq(words) {
		fmt.Fprintf(w, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{\"content\":%q}}],\"usage\":null}\n\n", word)
		w.(http.Flusher).Flush()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
	if c.StreamOptions.IncludeUsage {
		fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":%s}\n\n", usage)
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}
