package rawjson

import (
	"math"
	"strconv"
)

// NumberFinder finds the number that a Pointer leads to, in a JSON text that comes in pieces. It keeps no
// part of the text, except a name or a number that continues in the next piece. Of two members of one name,
// the last counts, as for most readers.
type NumberFinder struct {
	pointer Pointer
	lex     Lexer
	bad     bool // the text is malformed, or nests too deep

	on    int   // number of the enclosing arrays and objects through which the pointer leads
	index []int // of the next element in each of them
	next  bool  // the pointer leads to or through the next value

	cut []byte // the parts of a name or number so far
	max int    // the longest name that can be one of the pointer's

	found  float64
	has    bool
	passed bool // the name or number is too long to be kept
}

const (
	maxNumber = 64   // bytes of a number that is read
	maxNests  = 1000 // arrays and objects in one another
)

// NewNumberFinder returns a finder for one text.
func NewNumberFinder(p Pointer) *NumberFinder {
	f := &NumberFinder{pointer: p, index: make([]int, len(p)+1), max: maxNumber}
	for _, name := range p {
		f.max = max(f.max, 6*len(name)+2) // as long as it can be with every byte escaped
	}
	f.Reset()
	return f
}

// Reset makes f ready for another text.
func (f *NumberFinder) Reset() {
	f.lex = Lexer{MaxDepth: maxNests}
	f.bad, f.has, f.passed, f.on, f.cut = false, false, false, 0, f.cut[:0]
	f.next = true
}

// Write reads the next piece of the text. It keeps no part of piece.
func (f *NumberFinder) Write(piece []byte) { f.read(piece, false) }

// Number returns the number that has been found so far, and reports whether there is one. The text may go
// on. If it turns out to be malformed, there is none.
func (f *NumberFinder) Number() (float64, bool) { return f.found, f.has && !f.bad }

// Finish ends the text, and returns its number. A text that is incomplete has the number that it had until
// then.
func (f *NumberFinder) Finish() (float64, bool) {
	number, has := f.Number()
	f.read(nil, true)
	if complete, ok := f.Number(); ok {
		return complete, true
	}
	return number, has
}

func (f *NumberFinder) read(piece []byte, last bool) {
	if f.bad {
		return
	}
	f.lex.Feed(piece, last)
	for {
		t, err := f.lex.Next()
		switch {
		case err != nil:
			f.bad = true
			return
		case t.Kind == More || t.Kind == Done:
			return
		}
		f.token(t, piece[t.Start:t.End])
	}
}

// token reads one token. The lexer has counted the array or object that the token opens or closes.
func (f *NumberFinder) token(t Token, text []byte) {
	switch t.Kind {
	case ObjectEnd, ArrayEnd:
		if f.lex.Depth() < f.on {
			f.on = f.lex.Depth()
		}
		f.ended()
		return
	case Name:
		if f.lex.Depth() == f.on && f.keep(t, text) {
			f.next = f.isName(t)
			f.cut = f.cut[:0]
		}
		return
	case ObjectStart, ArrayStart:
		if f.leads(f.lex.Depth() - 1) {
			if f.on < len(f.pointer) {
				f.on++
				f.index[f.on] = 0
				f.next = t.Kind == ArrayStart && f.pointer[f.on-1] == "0"
			} else {
				f.has = false // the pointer leads to a container
			}
		}
		return
	}
	if f.leads(f.lex.Depth()) && f.on == len(f.pointer) {
		if t.Kind != Number {
			f.has = false
		} else if f.keep(t, text) {
			f.number()
			f.cut = f.cut[:0]
		}
	}
	if !t.Partial() {
		f.ended()
	}
}

// leads reports whether the pointer leads to a value at that depth, or through it.
func (f *NumberFinder) leads(around int) bool { return f.next && around == f.on }

// keep adds a part of a token, and reports whether that was the last part. A token that is too long is not
// kept.
func (f *NumberFinder) keep(t Token, part []byte) (whole bool) {
	if len(f.cut)+len(part) > f.max {
		f.passed = true
	} else {
		f.cut = append(f.cut, part...)
	}
	if t.Partial() {
		return false
	}
	if f.passed {
		f.passed, f.cut = false, f.cut[:0]
	}
	return true
}

func (f *NumberFinder) isName(t Token) bool {
	if len(f.cut) < 2 {
		return false
	}
	var buf [64]byte
	name, _ := unquote(buf[:0], f.cut, t.Escaped())
	return string(name) == f.pointer[f.on-1]
}

func (f *NumberFinder) number() {
	x, err := strconv.ParseFloat(string(f.cut), 64)
	f.found, f.has = x, err == nil && len(f.cut) <= maxNumber && !math.IsInf(x, 0)
}

// ended is called after a value. In an array on the way, the next element is the next value.
func (f *NumberFinder) ended() {
	if f.lex.Depth() != f.on || f.on == 0 {
		return
	}
	f.index[f.on]++
	var digits [20]byte
	f.next = !f.lex.inObject() && f.pointer[f.on-1] == string(strconv.AppendInt(digits[:0], int64(f.index[f.on]), 10))
}
