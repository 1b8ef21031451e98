// Package gunzip decompresses a gzip body while it is forwarded. The input is written to it, whereas
// compress/gzip reads its input and blocks until it has arrived. It needs no goroutine, and no memory besides
// the window of 32 KiB that the format requires.
package gunzip

import (
	"compress/gzip"
	"io"
	"iter"
)

// Writer passes the decompressed text to a function. Make it with New. It is not safe for concurrent use.
type Writer struct {
	input input
	more  func() (struct{}, bool)
	stop  func()
	done  bool
}

// New returns a Writer that calls to with each piece of the text. to must not keep the piece. Call Close at
// the end.
func New(to func(piece []byte)) *Writer {
	w := new(Writer)
	// The reader runs in a coroutine. Each Write resumes it.
	w.more, w.stop = iter.Pull(func(yield func(struct{}) bool) {
		w.input.yield = yield
		zr := new(gzip.Reader)
		var buf [4096]byte
		for zr.Reset(&w.input) == nil {
			zr.Multistream(false) // else it would wait for the next member before it ends this one
			var err error
			for err == nil {
				var n int
				if n, err = zr.Read(buf[:]); n > 0 {
					to(buf[:n])
				}
			}
			if err != io.EOF {
				return
			}
		}
	})
	return w
}

// Write reads the next piece of the compressed body. When it returns, all text that can be decompressed so
// far has been passed on. It keeps no part of p. Input that is not gzip, and input after the end, is ignored.
func (w *Writer) Write(p []byte) {
	if w.done || len(p) == 0 {
		return
	}
	w.input.piece = p
	_, ok := w.more()
	w.done, w.input.piece = !ok, nil
}

// Close frees the Writer's memory.
func (w *Writer) Close() {
	w.done = true
	w.stop()
}

// input is the reader's source. It implements io.ByteReader, so that the reader does not read ahead.
type input struct {
	piece []byte
	yield func(struct{}) bool
}

// wait waits until there is input. It returns an error after Close.
func (in *input) wait() error {
	for len(in.piece) == 0 {
		if !in.yield(struct{}{}) {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func (in *input) Read(p []byte) (int, error) {
	if err := in.wait(); err != nil {
		return 0, err
	}
	n := copy(p, in.piece)
	in.piece = in.piece[n:]
	return n, nil
}

func (in *input) ReadByte() (byte, error) {
	if err := in.wait(); err != nil {
		return 0, err
	}
	c := in.piece[0]
	in.piece = in.piece[1:]
	return c, nil
}
