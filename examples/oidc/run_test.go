package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestRotation runs the whole with many keys in a short time. What is refused too late for a short run is
// not looked at; TestJWKSRotation in the package does.
func TestRotation(t *testing.T) {
	for name, tt := range map[string]struct {
		plan plan
		err  string // how the error begins to tell, or ""
	}{
		"published in time, provider away": {plan{
			length: 2 * time.Second, rotate: 200 * time.Millisecond, ahead: 800 * time.Millisecond, tokenLife: 700 * time.Millisecond,
			down: 400 * time.Millisecond, minInterval: 100 * time.Millisecond, clients: 4,
		}, ""},
		"used as soon as published": {plan{
			length: 2 * time.Second, rotate: 200 * time.Millisecond, tokenLife: 500 * time.Millisecond,
			minInterval: 100 * time.Millisecond, clients: 4,
		}, ""},
		"NewOIDC, published in time": {plan{
			length: 2 * time.Second, rotate: 200 * time.Millisecond, ahead: 30 * time.Second, tokenLife: time.Hour,
			down: 400 * time.Millisecond, clients: 4,
		}, ""},
		"NewOIDC, published too late": {plan{
			length: 2 * time.Second, rotate: 200 * time.Millisecond, ahead: time.Second, tokenLife: time.Hour,
			clients: 4,
		}, "requests with a valid token were refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			err := run(t.Context(), tt.plan, &out)
			for n := 1; n < 4 && errors.Is(err, errTooShort); n++ {
				// The machine stood still while the provider was away, so nothing was shown: once more.
				out.Reset()
				err = run(t.Context(), tt.plan, &out)
			}
			t.Log(out.String())
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v", err)
			case strings.Contains(out.String(), "no valid token was refused") != (tt.err == ""):
				t.Error("the table says otherwise")
			}
		})
	}
}
