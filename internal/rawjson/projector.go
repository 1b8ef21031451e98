package rawjson

import (
	"errors"
	"strconv"
)

// maxName is how long a name may be, as it stands in the text, in an object of which a Projector keeps a part. The
// Projector must hold the name until it knows the value behind it.
const maxName = 64 << 10

// ErrName means that a Projector was given a name of more than 64 KiB.
var ErrName = errors.New("JSON member with a name of more than 64 KiB")

// Projector applies a Projection to one JSON text, which comes in pieces of any size. It checks the whole text as
// Lexer does. It keeps no part of it, except a name. Make it with Projection.Start. It is not safe for concurrent use.
//
// A value that is kept as a whole is copied as it stands, with the white space in it. White space in an object or
// array of which only a part is kept is not copied.
type Projector struct {
	projection *Projection
	lex        Lexer
	begun      bool // the text has a token

	whole wholeValue // within a value that is kept or dropped as a whole
	level int        // the arrays and objects around it

	frames []frame // the arrays and objects around the next token, in which something is kept and something dropped
	inline [8]frame

	name nameSoFar
	next action // for the value behind the name
}

// wholeValue is whether the Projector is within a value that it does not look into.
type wholeValue uint8

const (
	noValue wholeValue = iota
	keptValue
	droppedValue
)

// frame is an array or object, in which something is kept and something dropped.
type frame struct {
	node  *node
	array bool
	begun bool // something of it has been kept
	index int  // of the next element
}

// nameSoFar is the name of the member whose value follows.
type nameSoFar struct {
	text []byte // as it stands in the text, quoted: a part of the piece or of held
	held []byte // memory for a name that began in an earlier piece
	open bool   // more of it follows
	set  bool   // it is complete, and its value has not begun
}

// Start returns a Projector for one text. It refuses a text that nests deeper than 10,000.
func (p *Projection) Start() *Projector {
	q := &Projector{projection: p, lex: Lexer{MaxDepth: maxDepth}}
	q.frames = q.inline[:0]
	return q
}

// Begun reports whether anything but white space was in the text so far.
func (q *Projector) Begun() bool { return q.begun }

// Append appends to dst what the projection leaves of the next piece of the text. last reports that no piece follows.
// An error is final. What was appended before it can look like a whole text.
func (q *Projector) Append(dst, piece []byte, last bool) ([]byte, error) {
	q.lex.Feed(piece, last)
	if q.whole != noValue {
		end, more, err := q.pass(0)
		if err != nil {
			return dst, err
		}
		dst = q.copyWhole(dst, piece[:end])
		if more {
			return dst, nil
		}
		q.whole = noValue
	}
	for {
		t, err := q.lex.Next()
		if err != nil {
			return dst, err
		}
		switch t.Kind {
		case More:
			q.hold()
			return dst, nil
		case Done:
			return dst, nil
		case Name:
			if err := q.readName(t, piece); err != nil {
				return dst, err
			}
			continue
		case ObjectEnd, ArrayEnd:
			dst = append(dst, piece[t.Start])
			q.frames = q.frames[:len(q.frames)-1]
			continue
		}
		q.begun, q.name.set = true, false
		var more bool
		if dst, more, err = q.value(dst, t, piece); err != nil || more {
			return dst, err
		}
	}
}

// value reads the value that begins with t. more reports that it goes on in the next piece and is not looked into.
func (q *Projector) value(dst []byte, t Token, piece []byte) (_ []byte, more bool, err error) {
	do := q.action()
	container := t.Kind == ObjectStart || t.Kind == ArrayStart
	if do.kind == descends {
		if container {
			dst = q.begin(dst, do)
			dst = append(dst, piece[t.Start])
			q.frames = append(q.frames, frame{node: do.node, array: t.Kind == ArrayStart})
			return dst, false, nil
		}
		do.kind = drops
		if do.node.keepAll {
			do.kind = keeps
		} else if len(q.frames) == 0 {
			dst = append(dst, "null"...) // something must be left
		}
	}
	q.whole = droppedValue
	if do.kind == keeps {
		q.whole = keptValue
		dst = q.begin(dst, do)
	}
	end := t.End
	switch {
	case container:
		q.level = q.lex.Depth() - 1
		end, more, err = q.pass(t.End)
	case t.Partial():
		q.level = q.lex.Depth()
		more = true
	}
	if err != nil {
		return dst, false, err
	}
	dst = q.copyWhole(dst, piece[t.Start:end])
	if !more {
		q.whole = noValue
	}
	return dst, more, nil
}

// action returns what is done with the next value.
func (q *Projector) action() action {
	n := len(q.frames) - 1
	if n < 0 {
		return q.projection.root
	}
	f := &q.frames[n]
	if !f.array {
		return q.next
	}
	f.index++
	return f.node.element(f.index - 1)
}

// begin appends what stands before a value: a comma, and its name.
func (q *Projector) begin(dst []byte, do action) []byte {
	n := len(q.frames) - 1
	if n < 0 {
		return dst
	}
	f := &q.frames[n]
	if f.begun {
		dst = append(dst, ',')
	}
	f.begun = true
	if f.array {
		return dst
	}
	if do.name != nil {
		dst = append(dst, do.name...)
	} else {
		dst = append(dst, q.name.text...)
	}
	return append(dst, ':')
}

// pass reads the rest of a value that is kept or dropped as a whole, and returns where it or the piece ends. from is
// where the last token ended.
func (q *Projector) pass(from int) (end int, more bool, err error) {
	for {
		t, err := q.lex.Next()
		if err != nil {
			return 0, false, err
		}
		if t.Kind == More {
			return len(q.lex.piece), true, nil
		}
		if !t.Partial() && q.lex.depth <= q.level {
			return t.End, false, nil
		}
	}
}

// copyWhole appends a part of a value that is kept as a whole.
func (q *Projector) copyWhole(dst, part []byte) []byte {
	if q.whole == keptValue {
		dst = append(dst, part...)
	}
	return dst
}

// readName reads a name, or a part of one, and finds what is done with the value behind it.
func (q *Projector) readName(t Token, piece []byte) error {
	n := &q.name
	n.text = piece[t.Start:t.End]
	if n.open || t.Partial() {
		if !n.open {
			n.held = n.held[:0]
		}
		n.held = append(n.held, n.text...)
		n.text, n.open = n.held, t.Partial()
	}
	if len(n.text) > maxName {
		return ErrName
	}
	if n.open {
		return nil
	}
	n.set = true
	node := q.frames[len(q.frames)-1].node
	q.next = node.other
	if len(node.members) > 0 && len(n.text) <= q.projection.longest {
		var buf [64]byte
		name, _ := unquote(buf[:], n.text, t.Escaped())
		q.next = node.member(name)
	}
	return nil
}

// hold keeps the name whose value follows in another piece.
func (q *Projector) hold() {
	if n := &q.name; n.set {
		n.held = append(n.held[:0], n.text...)
		n.text = n.held
	}
}

func appendIndex(dst []byte, index int) []byte { return strconv.AppendInt(dst, int64(index), 10) }
