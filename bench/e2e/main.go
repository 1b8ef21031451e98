//go:build linux

// E2e measures what a proxied request costs, end to end: each contender is a process of its own on one processor,
// loaded over keep-alive connections from another one. Its figures are medians over interleaved rounds and ratios to
// a tuned httputil.ReverseProxy in the same round. Everything stays on the loopback interface.
//
//	go run ./bench/e2e
//	go run ./bench/e2e -quick -only get1k,tls
//	go run ./bench/e2e -rounds 21 -markdown -svg chart.svg
//	go run ./bench/e2e -with 'envoy=exec ./envoy.sh'
//
// The method, the contenders and how to read the tables are described in bench/README.md.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings are the command line.
type settings struct {
	rounds, requests, clients, idle int

	only, contenders []string
	with             [][2]string // name, command
	quick, markdown  bool
	svg              string
	results          string
	profiles         string
}

func parse(args []string, errs io.Writer) (*settings, error) {
	s := new(settings)
	f := flag.NewFlagSet("e2e", flag.ContinueOnError)
	f.SetOutput(errs)
	f.IntVar(&s.rounds, "rounds", 11, "undisturbed rounds to reach; at most twice as many are run")
	f.IntVar(&s.requests, "requests", 20000, "requests a round of 1 KiB GETs; dearer workloads send a documented share")
	f.IntVar(&s.clients, "clients", 32, "keep-alive connections to a contender")
	f.IntVar(&s.idle, "idle", 1000, "connections of the idle workload")
	only := f.String("only", "", "workloads to run, separated by commas: "+strings.Join(workloadNames(), ", "))
	names := f.String("contenders", "", "contenders to run, separated by commas; reverseproxy always runs: "+strings.Join(contenderNames(), ", "))
	f.BoolVar(&s.quick, "quick", false, "3 rounds of 2,000 requests, unless -rounds or -requests is given: shows that it works, measures little")
	f.BoolVar(&s.markdown, "markdown", false, "print the tables as markdown")
	f.StringVar(&s.svg, "svg", "", "write a chart of CPU per request ÷ ReverseProxy to `FILE`")
	f.StringVar(&s.results, "results", "", "replace the text between the lines <!-- e2e --> and <!-- e2e end --> of `FILE` by the tables, in markdown")
	f.StringVar(&s.profiles, "profiles", "", "write a CPU profile of each Go contender and workload to the directory `DIR`; its figures are then not for quoting")
	f.Func("with", "`name=command` adds a contender, a reverse proxy run by sh -c; $LISTEN is the address to serve, $TARGET the backend's,\n"+
		"$SCHEME http or https, $CERT and $KEY the files for https; begin with exec. May be repeated", func(v string) error {
		name, command, ok := strings.Cut(v, "=")
		if !ok || name == "" || command == "" {
			return errors.New("want name=command")
		}
		if slices.Contains(contenderNames(), name) {
			return fmt.Errorf("%q is a contender already", name)
		}
		s.with = append(s.with, [2]string{name, command})
		return nil
	})
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if s.quick && !given["rounds"] {
		s.rounds = 3
	}
	if s.quick && !given["requests"] {
		s.requests = 2000
	}
	s.only, s.contenders = list(*only), list(*names)
	if s.rounds < 1 || s.requests < 1 || s.clients < 1 || s.idle < 1 {
		return nil, errors.New("-rounds, -requests, -clients and -idle must be at least 1")
	}
	for _, name := range s.only {
		if !slices.Contains(workloadNames(), name) {
			return nil, fmt.Errorf("no workload %q; there are %s", name, strings.Join(workloadNames(), ", "))
		}
	}
	for _, name := range s.contenders {
		if !slices.Contains(contenderNames(), name) {
			return nil, fmt.Errorf("no contender %q; there are %s", name, strings.Join(contenderNames(), ", "))
		}
	}
	return s, nil
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "role" {
		fmt.Fprintln(os.Stderr, "e2e role:", play(os.Args[2:]))
		os.Exit(1)
	}
	s, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(2)
	}
	at, err := pinSelf()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, s, at)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

// run measures and prints what it found, also when it is interrupted on the way.
func run(ctx context.Context, s *settings, at cpus) error {
	began := time.Now()
	b, results, failed := measure(ctx, s, at)
	if b == nil {
		return failed
	}
	report(os.Stdout, b, results, time.Since(began))
	if s.svg != "" && len(results) > 0 {
		if err := os.WriteFile(s.svg, chart(results), 0o644); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "e2e: wrote", s.svg)
	}
	if s.results != "" && len(results) > 0 && failed == nil {
		b.settings.markdown = true
		var tables bytes.Buffer
		report(&tables, b, results, time.Since(began))
		if err := replaceResults(s.results, tables.Bytes()); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "e2e: wrote", s.results)
	}
	return failed
}

// The lines of a file between which its tables stand.
const resultsBegin, resultsEnd = "<!-- e2e -->\n", "<!-- e2e end -->\n"

// replaceResults replaces the tables in a file.
func replaceResults(file string, tables []byte) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(old, []byte(resultsBegin))
	_, after, ended := bytes.Cut(rest, []byte(resultsEnd))
	if !ok || !ended {
		return fmt.Errorf("%s has no lines %q and %q", file, resultsBegin, resultsEnd)
	}
	return os.WriteFile(file, slices.Concat(before, []byte(resultsBegin+"\n"), tables, []byte("\n"+resultsEnd), after), 0o644)
}

// measure runs the workloads. When it returns, every process has ended and all files are gone, so that a reader of the
// report who goes away early leaves nothing behind.
func measure(ctx context.Context, s *settings, at cpus) (b *bench, results []*result, err error) {
	if b, err = newBench(s, at); err != nil {
		return nil, nil, err
	}
	defer b.close()
	defer b.progress.end()
	for _, w := range workloads {
		if len(s.only) > 0 && !slices.Contains(s.only, w.name) {
			continue
		}
		r, err := b.measure(ctx, w)
		if ctx.Err() != nil {
			return b, results, errors.New("interrupted; workloads that were not finished are left out")
		}
		if err != nil {
			return b, results, fmt.Errorf("%s: %w", w.title, err)
		}
		results = append(results, r)
	}
	return b, results, nil
}
