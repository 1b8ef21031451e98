// Package chunkbuf is a byte buffer made of pooled chunks. Buffering a body for a short time leaves no
// garbage, and a buffer holds at most one chunk more memory than its bytes need.
package chunkbuf

import "sync"

// ChunkSize is the size of a chunk in bytes.
const ChunkSize = 8 << 10

type chunk [ChunkSize]byte

var pool = sync.Pool{New: func() any { return new(chunk) }}

// Buffer holds bytes. The zero Buffer is empty. A Buffer must not be copied while both copies are used, and
// is not safe for concurrent use.
type Buffer struct {
	chunks []*chunk
	first  [8]*chunk // the first elements of chunks: enough for the default limit of a retry, 64 KiB
	size   int
}

// Len returns the number of bytes.
func (b *Buffer) Len() int { return b.size }

// Append adds p at the end.
func (b *Buffer) Append(p []byte) {
	for len(p) > 0 {
		n := copy(b.Space(), p)
		b.Grow(n)
		p = p[n:]
	}
}

// Space returns free space at the end, at least one byte. Bytes written there become part of the buffer by
// Grow.
func (b *Buffer) Space() []byte {
	if b.chunks == nil {
		b.chunks = b.first[:0]
	}
	i, at := b.size/ChunkSize, b.size%ChunkSize
	if i == len(b.chunks) {
		b.chunks = append(b.chunks, pool.Get().(*chunk))
	}
	return b.chunks[i][at:]
}

// Grow adds to the buffer the first n bytes of what Space returned.
func (b *Buffer) Grow(n int) { b.size += n }

// CopyAt copies bytes from position at, which must be less than Len, to p and returns their number. It may
// copy fewer than possible, but at least one unless p is empty.
func (b *Buffer) CopyAt(p []byte, at int) int {
	rest := b.size - at
	c := b.chunks[at/ChunkSize]
	at %= ChunkSize
	return copy(p, c[at:min(ChunkSize, at+rest)])
}

// Bytes returns a copy of all bytes.
func (b *Buffer) Bytes() []byte {
	all := make([]byte, b.size)
	for at := 0; at < len(all); {
		at += b.CopyAt(all[at:], at)
	}
	return all
}

// MoveTo moves the bytes of b to the empty buffer to. b is empty afterwards.
func (b *Buffer) MoveTo(to *Buffer) {
	to.chunks, to.size = append(to.first[:0], b.chunks...), b.size
	*b = Buffer{}
}

// Free empties the buffer and gives its chunks back to the pool.
func (b *Buffer) Free() {
	for _, c := range b.chunks {
		pool.Put(c)
	}
	clear(b.chunks)
	b.chunks, b.size = nil, 0
}
