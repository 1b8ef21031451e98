// Package rawjson reads JSON text (RFC 8259) in place. One incremental Lexer splits the text into tokens.
// All else uses it. DecodeObject and StringMember are a strict decoder for text that security depends on.
// Value checks a text and returns parts of it unchanged, with the original numbers, escapes and order of
// members. NumberFinder and Projector read a text that comes in pieces: one finds a number, the other
// leaves out what a Projection does not keep.
package rawjson

import (
	"errors"
	"unicode/utf8"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// The errors of a Lexer.
var (
	ErrSyntax = errors.New("malformed JSON")
	ErrDepth  = errors.New("JSON nested too deep")
)

// Kind is the kind of a Token.
type Kind uint8

// The kinds. More and Done are not tokens: they report where the input stands.
const (
	More Kind = iota // the piece has been read; the text continues in the next one
	Done             // the text is complete
	ObjectStart
	ObjectEnd
	ArrayStart
	ArrayEnd
	Name // a member's name, with its quotes
	String
	Number
	True
	False
	Null
)

// Token is one token, or the part of a token that lies in one piece of the text. White space, commas and
// colons are not tokens: the Lexer checks them and moves on.
type Token struct {
	Kind       Kind
	marks      marks
	Start, End int // its bytes in the piece: piece[Start:End]
}

// marks are the boolean properties of a Token. In one field, a Token has few enough fields to stay in
// registers.
type marks uint8

const (
	partial marks = 1 << iota
	escaped
)

// Partial reports whether the token continues in the next piece.
func (t Token) Partial() bool { return t.marks&partial != 0 }

// Escaped reports whether a Name or String has a backslash in it, in this piece or an earlier one.
func (t Token) Escaped() bool { return t.marks&escaped != 0 }

// Lexer splits one JSON text into tokens. The text is fed in pieces of any size: a piece may end within a
// token, within an escape sequence and within a UTF-8 sequence. The Lexer accepts exactly the texts of RFC
// 8259 whose strings are valid UTF-8 and that nest at most MaxDepth arrays and objects. Lone surrogates
// (`\ud800`) and two members of one name are valid JSON. A caller that refuses them checks the tokens.
//
//	lex := rawjson.Lexer{MaxDepth: 32}
//	lex.Feed([]byte(`{"a":tr`), false)  // ObjectStart, Name `"a"`, True `tr` (Partial), More
//	lex.Feed([]byte(`ue}`), true)       // True `ue`, ObjectEnd, Done
//
// A token that reaches the end of a piece is Partial whenever more of it could follow. So its last part can
// be empty: "12" and ",3" are the parts "12" (Partial) and "" of one number.
//
// The Lexer does not recurse and keeps no copy of the text. It allocates only below 64 levels of nesting,
// one bit for each level. It is not safe for concurrent use.
type Lexer struct {
	MaxDepth int

	piece []byte
	pos   int
	last  bool // no piece follows
	err   error

	expect  expectation
	depth   int
	objects uint64   // for the innermost 64 levels, one bit each: 1 is an object, 0 an array
	outer   []uint64 // the levels around them, by 64

	token partialToken
}

// expectation is what the grammar allows next.
type expectation uint8

const (
	aValue expectation = iota
	aValueOrEnd
	aName
	aNameOrEnd
	aColon
	aCommaOrEnd
	nothing
)

// partialToken is the state within a token.
type partialToken struct {
	kind   Kind // More between tokens
	marks  marks
	state  state
	left   uint8 // hexadecimal digits or UTF-8 bytes to come; of a literal, the bytes that were read
	lo, hi byte  // the range of the next UTF-8 byte
}

// state is where in a string or a number the Lexer is.
type state uint8

const (
	plain state = iota // in a string, between characters
	backslash
	hexDigits
	continuation // within a UTF-8 sequence

	minus // in a number, after the minus sign
	zero
	integer
	point
	fraction
	exponent
	exponentSign
	exponentDigits
)

// Feed sets the next piece of the text. Call it once before the first Next, and again each time that Next
// has returned More. last reports that no piece follows; an empty last piece is fine. The Lexer reads piece
// until the next Feed.
func (l *Lexer) Feed(piece []byte, last bool) {
	l.piece, l.pos, l.last = piece, 0, last
}

// Depth returns the number of arrays and objects around the next token.
func (l *Lexer) Depth() int { return l.depth }

// Next returns the next token, More or Done. An error is final.
func (l *Lexer) Next() (Token, error) {
	if l.token.kind != More && (l.pos < len(l.piece) || l.last) {
		return l.scan(l.pos)
	}
	if l.err != nil {
		return Token{}, l.err
	}
	p := l.piece
	for l.pos < len(p) {
		start := l.pos
		c := p[start]
		l.pos++
		switch c {
		case ' ', '\t', '\r', '\n':
		case ',':
			if l.expect != aCommaOrEnd {
				return l.fail(ErrSyntax)
			}
			l.expect = aValue
			if l.inObject() {
				l.expect = aName
			}
		case ':':
			if l.expect != aColon {
				return l.fail(ErrSyntax)
			}
			l.expect = aValue
		case '{', '[', '}', ']':
			return l.bracket(c, start)
		case '"':
			return l.quote(start)
		case 't':
			return l.literal(True, "true", start)
		case 'f':
			return l.literal(False, "false", start)
		case 'n':
			return l.literal(Null, "null", start)
		case '-':
			return l.number(minus, start)
		case '0':
			return l.number(zero, start)
		case '1', '2', '3', '4', '5', '6', '7', '8', '9':
			return l.number(integer, start)
		default:
			return l.fail(ErrSyntax)
		}
	}
	switch {
	case !l.last:
		return Token{Kind: More, Start: l.pos, End: l.pos}, nil
	case l.expect != nothing:
		return l.fail(ErrSyntax)
	}
	return Token{Kind: Done, Start: l.pos, End: l.pos}, nil
}

func (l *Lexer) fail(err error) (Token, error) {
	l.err = err
	l.token.kind = More
	return Token{}, err
}

// bracket opens or closes an object or an array.
func (l *Lexer) bracket(c byte, start int) (Token, error) {
	t := Token{Start: start, End: start + 1}
	switch c {
	case '{', '[':
		if l.expect > aValueOrEnd {
			return l.fail(ErrSyntax)
		}
		if l.depth >= l.MaxDepth {
			return l.fail(ErrDepth)
		}
		if l.depth > 0 && l.depth%64 == 0 {
			l.outer = append(l.outer, l.objects)
		}
		l.depth++
		l.objects <<= 1
		if c == '[' {
			t.Kind, l.expect = ArrayStart, aValueOrEnd
		} else {
			t.Kind, l.expect = ObjectStart, aNameOrEnd
			l.objects |= 1
		}
		return t, nil
	case '}':
		t.Kind = ObjectEnd
		if l.expect != aNameOrEnd && (l.expect != aCommaOrEnd || !l.inObject()) {
			return l.fail(ErrSyntax)
		}
	default:
		t.Kind = ArrayEnd
		if l.expect != aValueOrEnd && (l.expect != aCommaOrEnd || l.inObject()) {
			return l.fail(ErrSyntax)
		}
	}
	l.pop()
	return t, nil
}

// pop leaves the innermost object or array.
func (l *Lexer) pop() {
	l.depth--
	l.objects >>= 1
	if n := len(l.outer) - 1; n >= 0 && l.depth%64 == 0 {
		l.objects, l.outer = l.outer[n], l.outer[:n]
	}
	l.valueEnds()
}

// inObject reports whether the innermost level is an object. The depth is not 0.
func (l *Lexer) inObject() bool { return l.objects&1 != 0 }

func (l *Lexer) valueEnds() {
	l.expect = aCommaOrEnd
	if l.depth == 0 {
		l.expect = nothing
	}
}

// skip moves past the rest of the innermost object or array, whose start was the last token, and returns
// the end of it. It looks at brackets and strings alone: it is for the text of a Value, which was checked
// before.
func (l *Lexer) skip() (end int) {
	p, i := l.piece, l.pos
	for depth := 1; i < len(p); i++ {
		switch p[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				l.pos = i + 1
				l.pop()
				return l.pos
			}
		case '"':
			for i++; i < len(p) && p[i] != '"'; i++ {
				if p[i] == '\\' {
					i++
				}
			}
		}
	}
	return i
}

// quote starts a Name or a String. It has a fast path for one that ends in this piece and has only plain
// bytes.
func (l *Lexer) quote(start int) (Token, error) {
	kind := String
	if l.expect == aName || l.expect == aNameOrEnd {
		kind = Name
	} else if l.expect > aValueOrEnd {
		return l.fail(ErrSyntax)
	}
	p, i := l.piece, start+1
	for i < len(p) && isPlain[p[i]] {
		i++
	}
	l.pos = i
	if i == len(p) || p[i] != '"' {
		return l.begin(kind, plain, start)
	}
	l.pos++
	if kind == Name {
		l.expect = aColon
	} else {
		l.valueEnds()
	}
	return Token{Kind: kind, Start: start, End: i + 1}, nil
}

// number starts a Number in the state s, with a fast path for one that ends in this piece.
func (l *Lexer) number(s state, start int) (Token, error) {
	end, s, ok := scanNumber(l.piece, start+1, s)
	if !ok {
		return l.fail(ErrSyntax)
	}
	l.pos = end
	if end == len(l.piece) || l.expect > aValueOrEnd {
		return l.begin(Number, s, start)
	}
	l.valueEnds()
	return Token{Kind: Number, Start: start, End: end}, nil
}

// literal starts a True, False or Null, with a fast path for one that is complete in this piece.
func (l *Lexer) literal(kind Kind, word string, start int) (Token, error) {
	end := start + len(word)
	if l.expect > aValueOrEnd || end > len(l.piece) || string(l.piece[start:end]) != word {
		return l.begin(kind, plain, start)
	}
	l.pos = end
	l.valueEnds()
	return Token{Kind: kind, Start: start, End: end}, nil
}

// begin starts a token whose first byte is at start and which is read up to pos.
func (l *Lexer) begin(kind Kind, in state, start int) (Token, error) {
	if kind != Name && l.expect > aValueOrEnd {
		return l.fail(ErrSyntax)
	}
	l.token = partialToken{kind: kind, state: in, left: 1}
	return l.scan(start)
}

// scan continues the current token at pos. start is where its part in this piece begins.
func (l *Lexer) scan(start int) (Token, error) {
	var complete, ok bool
	switch l.token.kind {
	case Name, String:
		complete, ok = l.scanString()
	case Number:
		l.pos, l.token.state, ok = scanNumber(l.piece, l.pos, l.token.state)
		complete = l.pos < len(l.piece) || l.last && mayEnd(l.token.state)
	case True:
		complete, ok = l.scanLiteral("true")
	case False:
		complete, ok = l.scanLiteral("false")
	case Null:
		complete, ok = l.scanLiteral("null")
	}
	if !ok || !complete && l.last {
		return l.fail(ErrSyntax)
	}
	t := Token{Kind: l.token.kind, marks: l.token.marks, Start: start, End: l.pos}
	if !complete {
		t.marks |= partial
		return t, nil
	}
	l.token.kind = More
	if t.Kind == Name {
		l.expect = aColon
	} else {
		l.valueEnds()
	}
	return t, nil
}

func (l *Lexer) scanLiteral(word string) (complete, ok bool) {
	for int(l.token.left) < len(word) {
		if l.pos == len(l.piece) {
			return false, true
		}
		if l.piece[l.pos] != word[l.token.left] {
			return false, false
		}
		l.pos++
		l.token.left++
	}
	return true, true
}

// isPlain has the ASCII bytes that stand for themselves in a string.
var isPlain = func() (table [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

// scanString reads up to the closing quote.
func (l *Lexer) scanString() (complete, ok bool) {
	p, i := l.piece, l.pos
	for i < len(p) {
		if l.token.state != plain {
			if !l.token.next(p[i]) {
				return false, false
			}
			i++
			continue
		}
		for i < len(p) && isPlain[p[i]] {
			i++
		}
		if i == len(p) {
			break
		}
		switch c := p[i]; {
		case c == '"':
			l.pos = i + 1
			return true, true
		case c == '\\':
			l.token.state, l.token.marks = backslash, escaped
		case c < ' ':
			return false, false
		default:
			if _, n := utf8.DecodeRune(p[i:]); n > 1 {
				i += n
				continue
			}
			// Malformed, or the piece ends within the character.
			if !l.token.lead(c) {
				return false, false
			}
		}
		i++
	}
	l.pos = i
	return false, true
}

// next reads a byte of an escape sequence or of a UTF-8 sequence.
func (t *partialToken) next(c byte) bool {
	switch t.state {
	case backslash:
		switch c {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			t.state = plain
		case 'u':
			t.state, t.left = hexDigits, 4
		default:
			return false
		}
		return true
	case hexDigits:
		if _, ok := hexdigit.Value(c); !ok {
			return false
		}
	case continuation:
		if c < t.lo || c > t.hi {
			return false
		}
		t.lo, t.hi = 0x80, 0xBF
	}
	if t.left--; t.left == 0 {
		t.state = plain
	}
	return true
}

// lead reads the first byte of a UTF-8 sequence (table 3-7 of the Unicode Standard).
func (t *partialToken) lead(c byte) bool {
	t.state, t.lo, t.hi = continuation, 0x80, 0xBF
	switch {
	case 0xC2 <= c && c <= 0xDF:
		t.left = 1
	case 0xE0 <= c && c <= 0xEF:
		t.left = 2
		if c == 0xE0 {
			t.lo = 0xA0 // shorter forms exist below
		} else if c == 0xED {
			t.hi = 0x9F // surrogates above
		}
	case 0xF0 <= c && c <= 0xF4:
		t.left = 3
		if c == 0xF0 {
			t.lo = 0x90
		} else if c == 0xF4 {
			t.hi = 0x8F // beyond U+10FFFF above
		}
	default:
		return false
	}
	return true
}

// scanNumber continues a number at p[i] in the state s, up to the first byte after the number:
// [-] (0 / 1-9 digits) [. digits] [e [+-] digits]. When it reaches the end of p, the number may go on.
func scanNumber(p []byte, i int, s state) (end int, in state, ok bool) {
	for ; i < len(p); i++ {
		c := p[i]
		switch {
		case '0' <= c && c <= '9':
			switch s {
			case integer, fraction, exponentDigits:
			case minus:
				s = integer
				if c == '0' {
					s = zero
				}
			case point:
				s = fraction
			case exponent, exponentSign:
				s = exponentDigits
			default: // a zero in front
				return i, s, false
			}
		case c == '.' && (s == zero || s == integer):
			s = point
		case (c == 'e' || c == 'E') && (s == zero || s == integer || s == fraction):
			s = exponent
		case (c == '+' || c == '-') && s == exponent:
			s = exponentSign
		default:
			return i, s, mayEnd(s)
		}
	}
	return i, s, true
}

// mayEnd reports whether a number can end in the state s.
func mayEnd(s state) bool {
	return s == zero || s == integer || s == fraction || s == exponentDigits
}
