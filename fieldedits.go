package gateway

import (
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// FieldEdits are edits of header fields: Drop removes fields, then Set replaces them, then Add appends
// values. The zero value changes nothing.
//
// Some fields cannot be edited: those that the gateway itself sets; those that frame a message, such as
// Content-Length; hop-by-hop fields, such as Connection; and Host, for which there is
// ProxyOptions.PreserveHost. Proxy panics on an edit of one of them, on a malformed name or value, and on two
// names in Set that a server could take for the same field.
type FieldEdits struct {
	Drop []string
	Set  map[string]string
	Add  map[string]string
}

// fieldEdits is FieldEdits, checked and in canonical form.
type fieldEdits struct {
	removed  []string // canonical: the names of Drop and Set
	set, add []editedField
}

type editedField struct{ name, value string }

// newFieldEdits checks edits. owned reports whether the gateway itself writes a field. option is the name of
// the field of ProxyOptions, for the message of a panic.
func newFieldEdits(option string, edits FieldEdits, owned func(name string) bool) fieldEdits {
	check := func(name string) string {
		reason := ""
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpfield.IsToken(name):
			reason = "is not a field name"
		case httpfield.IsHopByHop(canonical), isFraming(canonical):
			reason = "applies to one connection only, or frames the message"
		case canonical == "Host":
			reason = "cannot be edited: use PreserveHost or Rewrite"
		case owned(canonical):
			reason = "is a field that the gateway writes itself, or an alias of one"
		}
		if reason != "" {
			panic(fmt.Sprintf("gateway: Proxy: %s: %q %s", option, name, reason))
		}
		return canonical
	}
	list := func(fields map[string]string) (edited []editedField) {
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			if value := fields[name]; !httpfield.IsValue(value) {
				panic(fmt.Sprintf("gateway: Proxy: %s: %q has the malformed value %q", option, name, value))
			}
			edited = append(edited, editedField{check(name), fields[name]})
		}
		return edited
	}
	var e fieldEdits
	for _, name := range edits.Drop {
		e.removed = append(e.removed, check(name))
	}
	e.set, e.add = list(edits.Set), list(edits.Add)
	for i, f := range e.set {
		for _, other := range e.set[:i] {
			if httpfield.SameName(f.name, other.name) {
				panic(fmt.Sprintf("gateway: Proxy: %s: Set has both %q and %q, which a server could take for one field", option, other.name, f.name))
			}
		}
		e.removed = append(e.removed, f.name)
	}
	return e
}

// remove removes from h the fields of Drop and Set.
func (e *fieldEdits) remove(h http.Header) {
	for _, name := range e.removed {
		delete(h, name)
	}
}

// removes reports whether name is one of the fields of Drop and Set.
func (e *fieldEdits) removes(name string) bool { return slices.Contains(e.removed, name) }

// write writes the fields of Set and Add to h. The caller has called remove. write does not modify the slices
// in h, which other headers may share.
func (e *fieldEdits) write(h http.Header) {
	for _, f := range e.set {
		h[f.name] = []string{f.value}
	}
	for _, f := range e.add {
		had := h[f.name]
		h[f.name] = append(had[:len(had):len(had)], f.value)
	}
}
