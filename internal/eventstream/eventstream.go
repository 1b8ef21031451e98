// Package eventstream parses server-sent events (WHATWG HTML section 9.2.6) while they are forwarded. The
// stream is written to a Reader in pieces of any size. The Reader passes the data of events to a function and
// keeps none of it.
package eventstream

import "bytes"

// Reader splits a stream into events. Both functions are required.
type Reader struct {
	Data func(piece []byte) // receives the data of an event in pieces; its lines are joined by "\n"
	End  func()             // is called at the end of each event that has data

	state  state
	field  [5]byte // the name of the line's field, so far
	length int
	begun  bool // the event has a line of data
	cr     bool // the last byte was a carriage return; a line feed that follows belongs to it
	seen   int  // bytes of a byte order mark so far
}

// state is the position in a line.
type state uint8

const (
	lineStart state = iota
	inName
	afterColon // where one space is dropped
	inData
	ignored
)

var (
	newline = []byte("\n")
	mark    = []byte("\xef\xbb\xbf")
	data    = []byte("data")
)

// Write reads the next piece of the stream. It keeps no part of it.
func (r *Reader) Write(p []byte) {
	for r.seen < len(mark) && len(p) > 0 {
		if p[0] != mark[r.seen] {
			r.seen = len(mark)
			break
		}
		r.seen++
		p = p[1:]
	}
	for len(p) > 0 {
		if r.cr {
			r.cr = false
			if p[0] == '\n' {
				p = p[1:]
				continue
			}
		}
		switch r.state {
		case inData, ignored:
			end := bytes.IndexAny(p, "\r\n")
			line := p
			if end >= 0 {
				line = p[:end]
			}
			if r.state == inData && len(line) > 0 {
				r.Data(line)
			}
			if p = p[len(line):]; end >= 0 {
				r.cr = p[0] == '\r'
				p = p[1:]
				r.state = lineStart
			}
		default:
			r.step(p[0], &p)
		}
	}
}

// step reads one byte at the beginning of a line. It takes c from p, unless c is the first byte of the data.
func (r *Reader) step(c byte, p *[]byte) {
	switch {
	case c == '\r' || c == '\n':
		r.cr = c == '\r'
		switch {
		case r.state == lineStart:
			r.dispatch()
		case r.state == afterColon, r.isData():
			r.beginData() // an empty line of data
		}
		r.state = lineStart
	case r.state == afterColon:
		r.beginData()
		r.state = inData
		if c != ' ' {
			return
		}
	case c == ':':
		if r.isData() {
			r.state = afterColon
		} else {
			r.state = ignored
		}
	default:
		if r.state == lineStart {
			r.state, r.length = inName, 0
		}
		if r.length < len(r.field) {
			r.field[r.length] = c
			r.length++
		}
	}
	*p = (*p)[1:]
}

// isData reports whether the line's field so far is data.
func (r *Reader) isData() bool {
	return r.state == inName && r.length == len(data) && bytes.Equal(r.field[:r.length], data)
}

// beginData begins a line of data.
func (r *Reader) beginData() {
	if r.begun {
		r.Data(newline)
	}
	r.begun = true
}

// dispatch ends an event, at an empty line.
func (r *Reader) dispatch() {
	if r.begun {
		r.begun = false
		r.End()
	}
}
