//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
	"strings"
	"time"
)

// The chart's measures, in pixels.
const (
	panelWidth  = 430
	barHeight   = 15
	barGap      = 5
	nameWidth   = 128
	valueWidth  = 44
	panelHead   = 30
	panelBottom = 22
	chartHead   = 62
	margin      = 20
)

// chart draws a panel for each workload: one bar a contender, as long as its CPU per request, against a line where the
// tuned ReverseProxy's ends.
func chart(results []*result) []byte {
	var panels []*result
	for _, r := range results {
		if r.kind == closed {
			panels = append(panels, r)
		}
	}
	var body bytes.Buffer
	heights := [2]int{chartHead, chartHead}
	disturbed := false
	for _, r := range panels {
		column := 0
		if heights[1] < heights[0] {
			column = 1
		}
		for _, f := range r.summarize() {
			disturbed = disturbed || f.disturbedRoundsCounted
		}
		heights[column] += panel(&body, r, margin+column*(panelWidth+margin), heights[column])
	}
	width, height := 3*margin+2*panelWidth, max(heights[0], heights[1])+margin
	if len(panels) < 2 {
		width = 2*margin + panelWidth
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#1f2328">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&out, `<text x="%d" y="28" font-size="16" font-weight="bold">CPU per request ÷ tuned ReverseProxy</text>`+"\n", margin)
	note := "Shorter is better. " + time.Now().Format("2 January 2006") + ", " + machine() + "."
	if disturbed {
		note += " * Other load disturbed these: not for quoting."
	}
	fmt.Fprintf(&out, `<text x="%d" y="47" fill="#59636e">%s</text>`+"\n", margin, html.EscapeString(note))
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// panel draws one workload and returns its height.
func panel(to *bytes.Buffer, r *result, x, y int) int {
	all := r.summarize()
	longest := 1.25
	for _, f := range all {
		longest = max(longest, f.ratio)
	}
	room := float64(panelWidth - nameWidth - valueWidth)
	scale := func(v float64) float64 { return v / longest * room }
	title := r.title
	if r.parts > 0 {
		title += ", ÷ one 1 KiB GET"
	}
	fmt.Fprintf(to, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", x, y+18, html.EscapeString(title))
	top := y + panelHead
	bottom := top + len(all)*(barHeight+barGap)
	at := float64(x+nameWidth) + scale(1)
	fmt.Fprintf(to, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#cf222e" stroke-dasharray="3 3"/>`+"\n", at, top-4, at, bottom)
	for i, f := range all {
		barY := top + i*(barHeight+barGap)
		color, weight := "#afb8c1", "normal"
		switch {
		case f.name == reference:
			color = "#59636e"
		case strings.HasPrefix(f.name, "gateway"):
			color, weight = "#0969da", "bold"
		}
		fmt.Fprintf(to, `<text x="%d" y="%d" text-anchor="end" font-weight="%s">%s</text>`, x+nameWidth-8, barY+barHeight-3, weight, html.EscapeString(f.name))
		fmt.Fprintf(to, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, x+nameWidth, barY, scale(f.ratio), barHeight, color)
		fmt.Fprintf(to, `<text x="%.1f" y="%d" font-weight="%s" stroke="#ffffff" stroke-width="4" paint-order="stroke">%s</text>`+"\n", float64(x+nameWidth)+scale(f.ratio)+5, barY+barHeight-3, weight, ratioCell(f))
	}
	return panelHead + len(all)*(barHeight+barGap) + panelBottom
}
