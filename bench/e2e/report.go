//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// figures are what a table prints of a series: medians.
type figures struct {
	name                   string
	cpu, rate, p50, p99    float64
	ratio, low, high       float64 // of CPU to the reference's in the same round: median and quartiles
	perConn                float64
	peak                   int64
	counted, all           int
	disturbedRoundsCounted bool
}

// summarize leaves out disturbed rounds, and those in which the reference was disturbed for the ratio. Where fewer than
// a third of them would be left, all are counted and the figures say so.
func (r *result) summarize() (out []figures) {
	ref := r.series[0]
	for _, s := range r.series {
		f := figures{name: s.name, peak: s.peak, all: len(s.samples)}
		use := func(i int) bool { return !s.samples[i].disturbed && !ref.samples[i].disturbed }
		for i := range s.samples {
			if use(i) {
				f.counted++
			}
		}
		if f.counted == 0 || f.counted*3 < f.all {
			use, f.counted, f.disturbedRoundsCounted = func(int) bool { return true }, f.all, true
		}
		pick := func(of func(s, ref sample) float64) (values []float64) {
			for i := range s.samples {
				if use(i) {
					values = append(values, of(s.samples[i], ref.samples[i]))
				}
			}
			slices.Sort(values)
			return values
		}
		f.cpu = quantile(pick(func(s, _ sample) float64 { return s.cpu }), 0.5)
		f.rate = quantile(pick(func(s, _ sample) float64 { return s.rate }), 0.5)
		f.p50 = quantile(pick(func(s, _ sample) float64 { return s.p50 }), 0.5)
		f.p99 = quantile(pick(func(s, _ sample) float64 { return s.p99 }), 0.5)
		f.perConn = quantile(pick(func(s, _ sample) float64 { return s.perConn }), 0.5)
		ratios := pick(func(s, ref sample) float64 {
			if r.kind == idle {
				return s.perConn / ref.perConn
			}
			return s.cpu / ref.cpu
		})
		f.ratio, f.low, f.high = quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75)
		out = append(out, f)
	}
	return out
}

// quantile of sorted values, between two where it falls there.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// report prints how the run was made, what was left out, one table of ratios, and one of figures for each workload.
func report(to io.Writer, b *bench, results []*result, took time.Duration) {
	t := tables{to: to, markdown: b.settings.markdown}
	fmt.Fprintf(to, "%s, %s, %s, %s\n", time.Now().Format("2 January 2006"), runtime.Version(), machine(), command())
	fmt.Fprintf(to, "Target: %s. %s. %d connections. %s in all.\n", b.backend, pinning(b.cpus), b.settings.clients, took.Round(time.Second))
	for _, note := range b.notes {
		fmt.Fprintln(to, note+".")
	}
	if len(results) == 0 {
		return
	}
	t.title("CPU per request ÷ tuned ReverseProxy's, medians")
	head, rows := []string{"contender"}, [][]string{}
	for _, c := range b.field {
		row, any := []string{c.name}, false
		for _, r := range results {
			if r.kind == idle {
				continue
			}
			cell := ""
			for _, f := range r.summarize() {
				if f.name == c.name {
					cell, any = ratioCell(f), true
				}
			}
			row = append(row, cell)
		}
		if any {
			rows = append(rows, row)
		}
	}
	for _, r := range results {
		if r.kind != idle {
			head = append(head, r.title)
		}
	}
	if len(rows) > 0 {
		t.table(head, rows)
	}
	for _, r := range results {
		t.result(r)
	}
	fmt.Fprintln(to)
	for _, c := range b.field {
		t.item(c.name, c.what)
	}
	t.item("*", "too few rounds were free of other load, so disturbed ones are counted, too: not for quoting")
}

func ratioCell(f figures) string {
	if f.disturbedRoundsCounted {
		return fmt.Sprintf("%.2f*", f.ratio)
	}
	return fmt.Sprintf("%.2f", f.ratio)
}

// result prints the figures of one workload.
func (t tables) result(r *result) {
	title, per := r.title, "CPU ÷ ReverseProxy (quartiles)"
	switch {
	case r.parts > 0:
		title += "; reverseproxy answers one 1 KiB GET"
	case r.kind == paced:
		title = fmt.Sprintf("%s: %.0f requests/s, half of what ReverseProxy reaches", title, r.rate)
	case r.kind == idle:
		title, per = title+", memory of each", "÷ ReverseProxy (quartiles)"
	}
	t.title(title)
	rows := [][]string{}
	for _, f := range r.summarize() {
		ratio := fmt.Sprintf("%s (%.2f–%.2f)", ratioCell(f), f.low, f.high)
		rounds := fmt.Sprintf("%d of %d", f.counted, f.all)
		if r.kind == idle {
			rows = append(rows, []string{f.name, fmt.Sprintf("%.1f", f.perConn/1024), ratio, rounds})
			continue
		}
		rows = append(rows, []string{
			f.name, fmt.Sprintf("%.1f", f.cpu), ratio, fmt.Sprintf("%.0f", f.rate), fmt.Sprintf("%.0f", f.p50), fmt.Sprintf("%.0f", f.p99),
			fmt.Sprintf("%.1f", float64(f.peak)/(1<<20)), rounds,
		})
	}
	head := []string{"contender", "CPU µs/request", per, "requests/s", "p50 µs", "p99 µs", "peak MiB", "rounds"}
	if r.kind == idle {
		head = []string{"contender", "KiB/connection", per, "rounds"}
	}
	t.table(head, rows)
}

// tables prints plain text or markdown.
type tables struct {
	to       io.Writer
	markdown bool
}

func (t tables) title(s string) {
	if t.markdown {
		s = "### " + s
	}
	fmt.Fprintf(t.to, "\n%s\n\n", s)
}

func (t tables) item(name, what string) {
	if t.markdown {
		fmt.Fprintf(t.to, "- `%s`: %s\n", name, what)
		return
	}
	fmt.Fprintf(t.to, "%-16s %s\n", name, what)
}

func (t tables) table(head []string, rows [][]string) {
	if t.markdown {
		fmt.Fprintf(t.to, "| %s |\n|%s\n", strings.Join(head, " | "), " --- |"+strings.Repeat(" ---: |", len(head)-1))
		for _, row := range rows {
			fmt.Fprintf(t.to, "| %s |\n", strings.Join(row, " | "))
		}
		return
	}
	widths := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range append([][]string{head}, rows...) {
		var line strings.Builder
		for i, cell := range row {
			blanks := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i == 0 {
				line.WriteString(cell + blanks)
			} else {
				line.WriteString("  " + blanks + cell)
			}
		}
		fmt.Fprintln(t.to, strings.TrimRight(line.String(), " "))
	}
}

// command is the command line as somebody would type it.
func command() string {
	return strings.Join(append([]string{"go run ./bench/e2e"}, os.Args[1:]...), " ")
}

func pinning(c cpus) string {
	if !c.pinned() {
		return "Everything shares one processor"
	}
	return fmt.Sprintf("Contenders on processor %d, load and target on %d", c.contender, c.load)
}

// machine is the processor's name and how many there are.
func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	name := runtime.GOARCH
	if _, rest, ok := strings.Cut(string(b), "model name"); ok {
		if _, rest, ok = strings.Cut(rest, ": "); ok {
			name, _, _ = strings.Cut(rest, "\n")
		}
	}
	online, _ := os.ReadFile("/sys/devices/system/cpu/online")
	return fmt.Sprintf("%s, processors %s", name, strings.TrimSpace(string(online)))
}
