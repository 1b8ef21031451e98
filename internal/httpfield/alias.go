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

// Names is a set of field names, each together with its aliases: the names that SameName takes for the same.
// The zero value is the empty set. A set that does not change is safe for concurrent use.
type Names struct {
	names    []string
	prefixes []string  // folded
	initials [256]bool // the first letter or digit of each name and prefix, in both cases
}

// Add adds a name.
func (s *Names) Add(name string) {
	s.names = append(s.names, name)
	s.addInitial(name)
}

// AddPrefix adds every name whose letters and digits begin with those of prefix.
func (s *Names) AddPrefix(prefix string) {
	var folded strings.Builder
	for i := range len(prefix) {
		if c := foldByte(prefix[i]); c != 0 {
			folded.WriteByte(c)
		}
	}
	s.prefixes = append(s.prefixes, folded.String())
	s.addInitial(prefix)
}

func (s *Names) addInitial(name string) {
	for i := range len(name) {
		c := foldByte(name[i])
		if c == 0 {
			continue
		}
		s.initials[c] = true
		if 'a' <= c && c <= 'z' {
			s.initials[c-'a'+'A'] = true
		}
		return
	}
}

// Has reports whether name is in the set or an alias of a name in it.
func (s *Names) Has(name string) bool {
	if !s.hasInitial(name) {
		return false
	}
	for _, prefix := range s.prefixes {
		if hasFoldedPrefix(name, prefix) {
			return true
		}
	}
	for _, own := range s.names {
		if SameName(name, own) {
			return true
		}
	}
	return false
}

// hasInitial decides about most names by one byte.
func (s *Names) hasInitial(name string) bool {
	for i := range len(name) {
		if foldByte(name[i]) != 0 {
			return s.initials[name[i]]
		}
	}
	return false
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

// hasFoldedPrefix reports whether the letters and digits of name begin with prefix, which is folded.
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
