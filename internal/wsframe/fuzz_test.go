package wsframe

import (
	"bytes"
	"testing"
)

// FuzzWriter passes a stream on in pieces and asks to go away in its middle. Before the close frame the peer gets the
// stream up to the end of a frame, the same for every size of pieces, and nothing comes after it.
func FuzzWriter(f *testing.F) {
	for _, frame := range frames() {
		f.Add(frame, uint(1), uint(3))
	}
	f.Add(bytes.Join(frames(), nil), uint(7), uint(700))
	goodbye := []byte{0x88, 2, 0x03, 0xe9}
	pass := func(t *testing.T, stream []byte, piece, at uint) []byte {
		var got bytes.Buffer
		w := NewWriter(&got, false)
		write := func(p []byte) {
			for len(p) > 0 {
				n := min(len(p), int(piece))
				if m, err := w.Write(p[:n]); m != n || err != nil {
					t.Fatalf("Write: %d, %v", m, err)
				}
				p = p[n:]
			}
		}
		write(stream[:at])
		w.GoAway()
		write(stream[at:])
		return got.Bytes()
	}
	f.Fuzz(func(t *testing.T, stream []byte, piece, at uint) {
		piece, at = piece%1000+1, at%uint(len(stream)+1)
		got := pass(t, stream, piece, at)
		sent, closed := bytes.CutSuffix(got, goodbye)
		if !closed || !bytes.HasPrefix(stream, sent) {
			sent = got // the last frame has not ended
		}
		if !bytes.HasPrefix(stream, sent) || uint(len(sent)) < at {
			t.Fatalf("%x, left at %d: sent %x", stream, at, got)
		}
		if whole := pass(t, stream, uint(len(stream))+1, at); !bytes.Equal(got, whole) {
			t.Fatalf("%x, left at %d: %x in pieces of %d, %x at once", stream, at, got, piece, whole)
		}
	})
}
