// Package steps runs the check of an example: what it asks, what it expects and what it sees.
package steps

import (
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// Step is one row of the table.
type Step struct {
	asked, expected string
	see             func() string
}

// New returns a step. see does what asked describes, and returns what came of it.
func New(asked, expected string, see func() string) Step { return Step{asked, expected, see} }

// Run takes the steps in turn and writes a table of them to out. It ends with an error at the first step that
// sees something else than it expects.
func Run(out io.Writer, steps []Step) error {
	began := time.Now()
	asked, expected := 0, 0
	for _, s := range steps {
		asked, expected = max(asked, utf8.RuneCountInString(s.asked)), max(expected, utf8.RuneCountInString(s.expected))
	}
	row := fmt.Sprintf("%%-7s  %%-%ds  %%-%ds  %%s\n", asked, expected)
	fmt.Fprintf(out, row, "", "ASKED", "EXPECTED", "SEEN")
	for _, s := range steps {
		seen := s.see()
		verdict := "ok"
		if seen != s.expected {
			verdict = "DIFFERS"
		}
		fmt.Fprintf(out, row, verdict, s.asked, s.expected, seen)
		if seen != s.expected {
			return fmt.Errorf("%s: expected %q, saw %q", s.asked, s.expected, seen)
		}
	}
	fmt.Fprintf(out, "\nAll %d as expected, in %.1f s.\n", len(steps), time.Since(began).Seconds())
	return nil
}
