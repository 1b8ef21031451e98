package rawjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Projection says which parts of a JSON text are kept, and under which names. It is immutable. Make one with
// NewProjection, and one Projector of it for each text.
type Projection struct {
	root    action
	longest int // bytes that the longest of the names can take in a text, with every byte escaped
}

// path is a dotted path, by segments.
type path []segment

// segment is one step of a path: a name, which is also the index of an element, or any member or element.
type segment struct {
	name string
	any  bool
}

// leadsOver reports whether the segment leads to the member name.
func (s segment) leadsOver(name string) bool { return s.any || s.name == name }

// parsePath parses a dotted path, such as "items.*.title". A backslash before a dot, a star or a backslash
// makes it a part of the name.
func parsePath(text string) (path, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("not UTF-8")
	}
	var p path
	var name strings.Builder
	literal := false // a part of the segment was escaped
	end := func() error {
		s := segment{name: name.String()}
		switch {
		case s.name == "":
			return errors.New("an empty segment")
		case literal:
		case s.name == "*":
			s = segment{any: true}
		case strings.Contains(s.name, "*"):
			return errors.New(`a star that is a part of a name is written \*`)
		}
		p = append(p, s)
		name.Reset()
		literal = false
		return nil
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '.':
			if err := end(); err != nil {
				return nil, err
			}
		case '\\':
			if i++; i == len(text) || strings.IndexByte(`.*\`, text[i]) < 0 {
				return nil, errors.New(`a backslash is written \\`)
			}
			literal = literal || text[i] == '*'
			name.WriteByte(text[i])
		default:
			name.WriteByte(c)
		}
	}
	if err := end(); err != nil {
		return nil, err
	}
	return p, nil
}

// rule is what is to be done at the end of a path.
type rule struct {
	path path
	kind ruleKind
	name string // the new one
	text string // the path as it was given, for errors
}

type ruleKind int

const (
	keepRule ruleKind = iota
	dropRule
	renameRule
)

// action is what is done with a value.
type action struct {
	kind actionKind
	node *node  // to descend into
	name []byte // the new name of the member, quoted; nil for the old one
}

type actionKind uint8

const (
	drops    actionKind = iota
	keeps               // unchanged
	descends            // into its members or elements; a value without them is kept or dropped, by node.keepAll
)

// node has the actions for the members or elements of a value.
type node struct {
	keepAll  bool
	members  []named // for the members with these names
	elements []named // for the elements with these indexes
	other    action  // for all others
	byName   map[string]int
}

// named is the action for one name.
type named struct {
	name   string
	action action
}

// maxNodes bounds the memory of a Projection. Stars in many paths can make the nodes many.
const maxNodes = 10_000

// manyMembers is the number of names above which a node has a map of them.
const manyMembers = 8

// NewProjection compiles a projection. Paths refer to the original text. only lists what is kept; nil keeps
// everything. drop lists what is removed from that. rename maps a path to a new name for its last segment.
func NewProjection(only, drop []string, rename map[string]string) (*Projection, error) {
	c := compiler{nodes: make(map[string]*node)}
	for _, text := range only {
		if err := c.add(rule{text: text, kind: keepRule}); err != nil {
			return nil, err
		}
	}
	for _, text := range drop {
		if err := c.add(rule{text: text, kind: dropRule}); err != nil {
			return nil, err
		}
	}
	for _, text := range slices.Sorted(maps.Keys(rename)) {
		if err := c.add(rule{text: text, kind: renameRule, name: rename[text]}); err != nil {
			return nil, err
		}
	}
	if err := c.refuseConflicts(); err != nil {
		return nil, err
	}
	all := make([]int, len(c.rules))
	for i := range all {
		all[i] = i
	}
	root := c.action(all, 0, only == nil)
	if c.err != nil {
		return nil, c.err
	}
	if root.kind == drops { // something must be left: an empty object or array
		root = action{kind: descends, node: &node{}}
	}
	return &Projection{root: root, longest: c.longest}, nil
}

// KeepsAll reports whether the projection changes nothing.
func (p *Projection) KeepsAll() bool { return p.root.kind == keeps }

type compiler struct {
	rules   []rule
	nodes   map[string]*node // by the rules that lead into them
	longest int
	err     error
}

func (c *compiler) add(r rule) error {
	var err error
	if r.path, err = parsePath(r.text); err != nil {
		return fmt.Errorf("path %q: %w", r.text, err)
	}
	if r.kind == renameRule {
		switch {
		case r.path[len(r.path)-1].any:
			return fmt.Errorf("path %q: a new name for every member", r.text)
		case !utf8.ValidString(r.name):
			return fmt.Errorf("path %q: the new name is not UTF-8", r.text)
		}
	}
	for _, s := range r.path {
		c.longest = max(c.longest, 6*len(s.name)+2)
	}
	c.longest = max(c.longest, 6*len(r.name)+2)
	c.rules = append(c.rules, r)
	return nil
}

// refuseConflicts returns an error if two renames give the same name to two members, or two names to one
// member.
func (c *compiler) refuseConflicts() error {
	for i, a := range c.rules {
		for _, b := range c.rules[i+1:] {
			if a.kind != renameRule || b.kind != renameRule || !overlap(a.path[:len(a.path)-1], b.path[:len(b.path)-1]) {
				continue
			}
			last := len(a.path) - 1
			switch same := a.path[last] == b.path[last]; {
			case same && a.name != b.name:
				return fmt.Errorf("paths %q and %q: two new names for one member", a.text, b.text)
			case !same && a.name == b.name:
				return fmt.Errorf("paths %q and %q: one new name for two members", a.text, b.text)
			}
		}
	}
	return nil
}

// overlap reports whether two paths can lead to one value.
func overlap(a, b path) bool {
	return slices.EqualFunc(a, b, func(s, t segment) bool { return s.any || t.leadsOver(s.name) })
}

// action returns what is done with a value to which the first depth segments of the rules lead. kept is
// whether it is kept unless a rule says otherwise.
func (c *compiler) action(rules []int, depth int, kept bool) action {
	var inside []int // the rules for something within the value
	only := false
	for _, i := range rules {
		r := &c.rules[i]
		switch {
		case len(r.path) > depth:
			inside = append(inside, i)
			only = only || r.kind == keepRule
		case r.kind == dropRule:
			return action{kind: drops}
		case r.kind == keepRule:
			kept = true
		}
	}
	if kept {
		inside = slices.DeleteFunc(inside, func(i int) bool { return c.rules[i].kind == keepRule })
	}
	switch {
	case !kept && !only:
		return action{kind: drops}
	case len(inside) == 0:
		return action{kind: keeps}
	}
	return action{kind: descends, node: c.node(inside, depth, kept)}
}

// node returns the node of a value into which the first depth segments of the rules lead.
func (c *compiler) node(rules []int, depth int, kept bool) *node {
	key := fmt.Sprint(rules, depth, kept)
	if n, ok := c.nodes[key]; ok {
		return n
	}
	n := &node{keepAll: kept}
	if len(c.nodes) >= maxNodes {
		c.err = errors.New("too many paths with stars")
		return n
	}
	c.nodes[key] = n

	var names []string
	renamed := make(map[string]string)
	for _, i := range rules {
		r := &c.rules[i]
		if s := r.path[depth]; !s.any && !slices.Contains(names, s.name) {
			names = append(names, s.name)
		}
		if r.kind == renameRule && len(r.path) == depth+1 {
			renamed[r.path[depth].name] = r.name
		}
	}
	for _, name := range names {
		a := c.action(c.within(rules, depth, segment{name: name}), depth+1, kept)
		if isIndex(name) {
			n.elements = append(n.elements, named{name, a})
		}
		if to, ok := renamed[name]; ok && a.kind != drops {
			a.name, _ = json.Marshal(to)
		}
		n.members = append(n.members, named{name, a})
	}
	n.other = c.action(c.within(rules, depth, segment{any: true}), depth+1, kept)
	n.giveWay()
	if len(n.members) > manyMembers {
		n.byName = make(map[string]int, len(n.members))
		for i, m := range n.members {
			n.byName[m.name] = i
		}
	}
	return n
}

// within returns the rules that lead over s.
func (c *compiler) within(rules []int, depth int, s segment) []int {
	var on []int
	for _, i := range rules {
		if t := c.rules[i].path[depth]; t.any || t == s {
			on = append(on, i)
		}
	}
	return on
}

// giveWay drops each member whose name another member receives by a rename, so that no name occurs twice.
func (n *node) giveWay() {
	for _, renamed := range slices.Clone(n.members) {
		if renamed.action.name == nil {
			continue
		}
		var name string
		_ = json.Unmarshal(renamed.action.name, &name)
		at := slices.IndexFunc(n.members, func(m named) bool { return m.name == name })
		switch {
		case at < 0:
			n.members = append(n.members, named{name, action{kind: drops}})
		case n.members[at].action.name == nil:
			n.members[at].action = action{kind: drops}
		}
	}
}

// isIndex reports whether s is the index of an element, as RFC 6901 writes it.
func isIndex(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s == "0" || s != "" && s[0] != '0' && len(s) < 19
}

// member returns the action for a member.
func (n *node) member(name []byte) action {
	if n.byName != nil {
		if i, ok := n.byName[string(name)]; ok {
			return n.members[i].action
		}
		return n.other
	}
	for i := range n.members {
		if m := &n.members[i]; string(name) == m.name {
			return m.action
		}
	}
	return n.other
}

// element returns the action for an element.
func (n *node) element(index int) action {
	if len(n.elements) > 0 {
		var buf [20]byte
		name := appendIndex(buf[:0], index)
		for i := range n.elements {
			if e := &n.elements[i]; string(name) == e.name {
				return e.action
			}
		}
	}
	return n.other
}
