package eventstream

import (
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	for _, tt := range []struct{ stream, want string }{
		{"data: a\n\n", "a|"},
		{"data:a\r\n\r\ndata:  b\r\r", "a| b|"},
		{"\xef\xbb\xbfdata: a\n\n", "a|"},
		{": comment\nevent: x\nid: 1\ndata: a\nretry: 3\ndata: b\n\n", "a\nb|"},
		{"data\n\ndata:\n\n", "||"},
		{"data: a\ndata\ndata: b\n\n", "a\n\nb|"},
		{"datax: a\ndat: b\n data: c\nDATA: d\nid: data: x\n\n\n", ""},
		{"event: x\n\n\n\ndata: a: b\n\n", "a: b|"},
		{"data: cut off\n", "cut off"},
		{"data: a\n\r\n", "a|"},
		{"data: a\r\ndata: b\r\n\r\n", "a\nb|"},
	} {
		for size := 1; size <= len(tt.stream); size++ {
			var got strings.Builder
			r := Reader{
				Data: func(p []byte) { got.Write(p) },
				End:  func() { got.WriteByte('|') },
			}
			for s := tt.stream; s != ""; {
				n := min(size, len(s))
				r.Write([]byte(s[:n]))
				s = s[n:]
			}
			if got.String() != tt.want {
				t.Errorf("%q by %d: %q, want %q", tt.stream, size, got.String(), tt.want)
			}
		}
	}
}
