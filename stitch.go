package gateway

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// stitch writes the answer. It consists of pieces of the parts' bodies, which are not copied.
func (f *fanout) stitch(w http.ResponseWriter) {
	object := jsonObject{pieces: make([][]byte, 0, 4*len(f.parts)+3)}
	object.add(openBrace)
	if f.opts.Merge {
		f.merge(&object)
	} else {
		for i := range f.parts {
			object.member(f.parts[i].member, f.answers[i].value)
		}
	}
	h := w.Header()
	list := f.failures()
	if list != nil {
		object.member(errorsMember, list)
	}
	f.setCaching(h, list == nil)
	object.add(closeBrace)
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(object.size)}
	w.WriteHeader(http.StatusOK)
	object.writeTo(w)
}

// setCaching sets Cache-Control and Vary. complete is true if no part has failed.
func (f *fanout) setCaching(h http.Header, complete bool) {
	var strictest httpfield.Strictest
	if own := httpfield.CachingOf(http.Header{"Cache-Control": h["Cache-Control"]}, time.Now); own != (httpfield.Caching{}) {
		strictest.Add(own)
	}
	vary := varying{lines: h["Vary"]}
	for i := range f.answers {
		a := &f.answers[i]
		strictest.Add(a.caching)
		vary.add(f, a.vary)
	}
	control := "no-store"
	if complete {
		control = strictest.Format(f.personal())
	}
	if control != "" {
		h["Cache-Control"] = []string{control}
	}
	vary.set(h)
}

// personal reports whether the request has an Identity or the field Authorization.
func (f *fanout) personal() bool {
	f.ex.mu.Lock()
	defer f.ex.mu.Unlock()
	return f.ex.identity != nil || len(f.in.Header["Authorization"]) > 0
}

// maxVary limits the number of names in Vary. If the parts name more, Vary is "*".
const maxVary = 64

// varying collects the names in Vary.
type varying struct {
	lines []string // the values that an outer middleware has set
	more  []string // names of the parts that are not in lines
	all   bool     // Vary is "*"
}

// add adds the names in a part's Vary.
func (v *varying) add(f *fanout, lines []string) {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.TrimSpace(name)
			switch {
			case name == "":
			case v.all:
				return
			case name == "*", !httpfield.IsToken(name), f.owns(http.CanonicalHeaderKey(name)), len(v.more) == maxVary:
				v.all = true
			case !httpfield.HasToken(v.lines, name) && !httpfield.HasToken(v.more, name):
				v.more = append(v.more, name)
			}
		}
	}
}

func (v *varying) set(h http.Header) {
	switch {
	case v.all:
		h["Vary"] = []string{"*"}
	case len(v.more) > 0:
		h["Vary"] = append(v.lines[:len(v.lines):len(v.lines)], strings.Join(v.more, ", "))
	}
}

// failures returns the JSON array "errors", which lists the parts that failed. It returns nil if none failed.
func (f *fanout) failures() []byte {
	var b []byte
	for i := range f.answers {
		failure := f.answers[i].failure
		if failure == nil {
			continue
		}
		if b == nil {
			b = append(b, '[')
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"name":`...)
		b = append(b, f.parts[i].member...)
		b = append(b, `,"status":`...)
		b = strconv.AppendInt(b, int64(failure.err.Status), 10)
		b = append(b, `,"outcome":"`...)
		b = append(b, failure.outcome.String()...)
		b = append(b, `"}`...)
	}
	if b != nil {
		b = append(b, ']')
	}
	return b
}

// merge adds the members of all parts to object. A name of an earlier part is not added again.
func (f *fanout) merge(object *jsonObject) {
	taken := map[string]struct{}{"errors": {}} // the names of the earlier parts' members
	var buf [64]byte
	for i := range f.parts {
		value := f.answers[i].value
		if !value.IsObject() {
			if _, ok := taken[f.parts[i].Name]; !ok {
				taken[f.parts[i].Name] = struct{}{}
				object.member(f.parts[i].member, value)
			}
			continue
		}
		items := value.Items()
		for item, ok := items.Next(); ok; item, ok = items.Next() {
			if _, ok := taken[string(item.Name(buf[:]))]; !ok {
				object.item(item.Text)
			}
		}
		if i == len(f.parts)-1 {
			break
		}
		// The names are added only now, so that two members of the same name in one part are both kept.
		items = value.Items()
		for item, ok := items.Next(); ok; item, ok = items.Next() {
			taken[string(item.Name(buf[:]))] = struct{}{}
		}
	}
}

// maxMergedMembers limits the number of names in taken for each part.
const maxMergedMembers = 10_000

// fewMembers reports whether an object has at most maxMergedMembers members.
func fewMembers(object rawjson.Value) bool {
	items := object.Items()
	for range maxMergedMembers {
		if _, ok := items.Next(); !ok {
			return true
		}
	}
	_, more := items.Next()
	return !more
}

var (
	errorsMember = []byte(`"errors"`)
	openBrace    = []byte("{")
	closeBrace   = []byte("}\n")
	colon        = []byte(":")
	comma        = []byte(",")
)

// jsonObject is a JSON object as a list of pieces of text.
type jsonObject struct {
	pieces [][]byte
	size   int  // bytes of all pieces
	begun  bool // the object has a member
}

func (o *jsonObject) add(piece []byte) {
	o.pieces = append(o.pieces, piece)
	o.size += len(piece)
}

// writeTo writes the object. It collects short pieces in a buffer, so that a small object is one write.
func (o *jsonObject) writeTo(w io.Writer) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	n := 0
	for _, piece := range o.pieces {
		if len(piece) > len(buf)-n {
			if n > 0 {
				if _, err := w.Write(buf[:n]); err != nil {
					return // the client is gone
				}
			}
			n = 0
			if len(piece) > len(buf)/2 {
				if _, err := w.Write(piece); err != nil {
					return
				}
				continue
			}
		}
		n += copy(buf[n:], piece)
	}
	_, _ = w.Write(buf[:n])
}

// item adds a member, which is already the text of a name, a colon and a value.
func (o *jsonObject) item(item []byte) {
	if o.begun {
		o.add(comma)
	}
	o.begun = true
	o.add(item)
}

// member adds a member. name is a JSON string, with its quotes.
func (o *jsonObject) member(name, value []byte) {
	o.item(name)
	o.add(colon)
	o.add(value)
}
