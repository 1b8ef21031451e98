package chunkbuf_test

import (
	"bytes"
	"testing"

	"github.com/seed-96248d0c/gateway/internal/chunkbuf"
)

// TestBuffer puts bytes in through Append and through Space, around the ends of chunks, and reads them.
func TestBuffer(t *testing.T) {
	var b chunkbuf.Buffer
	var want []byte
	for round := range 2 {
		for i, n := range []int{1, chunkbuf.ChunkSize - 2, 1, 1, chunkbuf.ChunkSize, 3*chunkbuf.ChunkSize + 7, 0, 50 * chunkbuf.ChunkSize} {
			p := bytes.Repeat([]byte{byte(i + 100*round)}, n)
			want = append(want, p...)
			if i%2 == 0 {
				b.Append(p)
				continue
			}
			for len(p) > 0 {
				n := copy(b.Space(), p)
				b.Grow(n)
				p = p[n:]
			}
		}
		if !bytes.Equal(b.Bytes(), want) || b.Len() != len(want) {
			t.Fatalf("round %d: %d bytes, want %d, or others", round, b.Len(), len(want))
		}
		for _, at := range []int{0, 1, chunkbuf.ChunkSize - 1, chunkbuf.ChunkSize, len(want) - 1} {
			p := make([]byte, 10)
			if n := b.CopyAt(p, at); n == 0 || !bytes.HasPrefix(want[at:], p[:n]) {
				t.Errorf("at %d: %d bytes %v", at, n, p[:n])
			}
		}
		b.Free()
		if b.Len() != 0 || len(b.Bytes()) != 0 {
			t.Fatal("not empty after Free")
		}
		want = nil
	}
}
