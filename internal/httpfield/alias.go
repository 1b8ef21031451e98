package httpfield

import "strings"

// SameName reports whether two field names have the same letters and digits, in upper or lower case. Some
// servers fold X_User_Id, x.user.id and X-User-ID into one variable.
func SameName(a, b string) bool {
	i, j := 0, 0
	for {
		var x, y byte
		for ; i < len(a) && x == 0; i++ {
			x = foldByte(a[i])
		}
		for ; j < len(b) && y == 0; j++ {
			y = foldByte(b[j])
		}
		if x != y {
			return false
		}
		if x == 0 {
			return true
		}
	}
}

// Names is a set of field names, each together with its aliases: the names for which SameName is true.
// The zero value is the empty set. A set that does not change is safe for concurrent use.
type Names struct {
	initials [256]uint8 // by first letter or digit, in both cases: index of the group plus 1, or 0 for none
	groups   []nameGroup
}

// nameGroup holds the names that begin with one letter or digit.
type nameGroup struct {
	names    []string
	prefixes []string // folded
}

// Add adds a name.
func (s *Names) Add(name string) {
	if g := s.group(name); g != nil {
		g.names = append(g.names, name)
	}
}

// AddPrefix adds every name whose letters and digits begin with those of prefix.
func (s *Names) AddPrefix(prefix string) {
	var folded strings.Builder
	for i := range len(prefix) {
		if c := foldByte(prefix[i]); c != 0 {
			folded.WriteByte(c)
		}
	}
	if g := s.group(prefix); g != nil {
		g.prefixes = append(g.prefixes, folded.String())
	}
}

// group returns the group of name and creates it if it does not exist. It returns nil for a name without
// letters and digits.
func (s *Names) group(name string) *nameGroup {
	initial := initialOf(name)
	c := foldByte(initial)
	if c == 0 {
		return nil
	}
	if s.initials[c] == 0 {
		s.groups = append(s.groups, nameGroup{})
		s.initials[c] = uint8(len(s.groups))
		if 'a' <= c && c <= 'z' {
			s.initials[c-'a'+'A'] = uint8(len(s.groups))
		}
	}
	return &s.groups[s.initials[c]-1]
}

// Has reports whether name is in the set or an alias of a name in it.
func (s *Names) Has(name string) bool {
	place := s.initials[initialOf(name)] // enough to rule out most names
	if place == 0 {
		return false
	}
	g := &s.groups[place-1]
	for _, prefix := range g.prefixes {
		if hasFoldedPrefix(name, prefix) {
			return true
		}
	}
	for _, own := range g.names {
		if SameName(name, own) {
			return true
		}
	}
	return false
}

// initialOf returns the first letter or digit of name, and 0 if there is none.
func initialOf(name string) byte {
	for i := range len(name) {
		if foldByte(name[i]) != 0 {
			return name[i]
		}
	}
	return 0
}

// foldByte returns c in lower case when it is a letter or digit, and 0 otherwise.
func foldByte(c byte) byte {
	switch {
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return c
	case 'A' <= c && c <= 'Z':
		return c - 'A' + 'a'
	}
	return 0
}

// hasFoldedPrefix reports whether the folded name begins with prefix, which is folded already.
func hasFoldedPrefix(name, prefix string) bool {
	n := 0
	for i := 0; i < len(name) && n < len(prefix); i++ {
		c := foldByte(name[i])
		if c == 0 {
			continue
		}
		if c != prefix[n] {
			return false
		}
		n++
	}
	return n == len(prefix)
}
