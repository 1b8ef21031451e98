package h1

import (
	"bytes"
	"io"
	"net/http"
)

const (
	maxChunkLine     = 4096     // bytes of a line with a chunk's size and extensions
	maxChunkOverhead = 16 << 10 // bytes of framing above the allowance; see advance
)

// Phases of reading a chunked body.
const (
	chunkSize    = iota // before the line with a chunk's size
	chunkData           // in the chunk's data
	chunkEnd            // before the CRLF after the data
	chunkTrailer        // after the last chunk
)

// advance consumes the next element of chunked framing: a line with a size, the CRLF after a chunk, or the
// trailer, after which it returns io.EOF. If the element is not complete, it consumes nothing.
//
// Framing is limited in relation to data. A chunk of n bytes may have 16 + 2n bytes of framing. More than
// that counts as overhead, less reduces it, and a chunk of 16 KiB clears it. So a body in chunks of one
// byte is accepted at any length. A body whose chunks have one byte of data and an extension of 4,000 bytes
// is refused at the fifth.
func (b *body) advance() error {
	c := b.conn
	switch b.phase {
	case chunkSize:
		line, err := c.chunkLine()
		if err != nil {
			return err
		}
		size, padded, err := parseChunkSize(line)
		if err != nil {
			return err
		}
		c.noReuse = c.noReuse || padded
		b.overhead += len(line) + len("\r\n") - 16
		if size < maxChunkOverhead {
			b.overhead -= 2 * int(size)
		} else {
			b.overhead = 0
		}
		if b.overhead = max(b.overhead, 0); b.overhead > maxChunkOverhead {
			return malformed("too much chunked framing for little data")
		}
		c.r += len(line) + len("\r\n")
		b.left, b.phase = size, chunkData
		if size == 0 {
			b.phase = chunkTrailer
		}
	case chunkEnd:
		for len(c.buffered()) < 2 {
			if err := c.fill(bufferSize); err != nil {
				return unexpected(err)
			}
		}
		if string(c.buffered()[:2]) != "\r\n" {
			return malformed("chunk longer than its size")
		}
		c.r += 2
		b.phase = chunkSize
	case chunkTrailer:
		if err := b.readTrailer(); err != nil {
			return err
		}
		return io.EOF
	}
	return nil
}

// chunkLine returns the next line without its CRLF. It does not consume the line.
func (c *conn) chunkLine() ([]byte, error) {
	for {
		have := c.buffered()
		i := bytes.IndexByte(have, '\n')
		switch {
		case i > maxChunkLine || i < 0 && len(have) > maxChunkLine:
			return nil, malformed("chunk extension too long")
		case i == 0 || i > 0 && have[i-1] != '\r':
			return nil, malformed("line with a chunk size ends with LF instead of CRLF")
		case i > 0:
			return have[:i-1], nil
		}
		if err := c.fill(bufferSize); err != nil {
			return nil, unexpected(err)
		}
	}
}

// parseChunkSize parses the hexadecimal size of a chunk and ignores extensions (RFC 9112 section 7.1). padded
// reports that spaces follow the size, which some servers add.
func parseChunkSize(line []byte) (size int64, padded bool, err error) {
	digits := 0
	for digits < len(line) {
		c := line[digits]
		var v byte
		switch {
		case '0' <= c && c <= '9':
			v = c - '0'
		case 'a' <= c && c <= 'f':
			v = c - 'a' + 10
		case 'A' <= c && c <= 'F':
			v = c - 'A' + 10
		default:
			v = 255
		}
		if v == 255 {
			break
		}
		if digits == 16 || size >= 1<<59 {
			return 0, false, malformed("chunk size too large")
		}
		size = size<<4 | int64(v)
		digits++
	}
	rest := line[digits:]
	if digits == 0 {
		return 0, false, malformed("chunk size %s", quote(string(line)))
	}
	if len(rest) == 0 {
		return size, false, nil
	}
	if rest[0] != ';' && len(bytes.Trim(rest, " \t")) > 0 || !isValue(string(rest)) {
		return 0, false, malformed("chunk size %s", quote(string(line)))
	}
	return size, rest[0] != ';', nil
}

// readTrailer consumes the fields after the last chunk and the empty line. It adds them to Response.Trailer.
func (b *body) readTrailer() error {
	c := b.conn
	for len(c.buffered()) < 2 {
		if err := c.fill(bufferSize); err != nil {
			return unexpected(err)
		}
	}
	if string(c.buffered()[:2]) == "\r\n" {
		c.r += 2
		return nil
	}
	budget := c.t.opts.MaxHeaderBytes
	text, lines, err := c.readHead(&budget, "")
	if err != nil {
		return err
	}
	trailer := make(http.Header, min(lines, 64))
	seen, err := parseFields(text, trailer, make([]string, lines))
	if err != nil {
		return err
	}
	if seen&bareLF != 0 {
		return malformed("trailer with a line that ends with LF instead of CRLF")
	}
	c.noReuse = c.noReuse || seen != 0
	for name, values := range trailer {
		c.noReuse = c.noReuse || !allowedInTrailer(name)
		if b.res.Trailer == nil {
			b.res.Trailer = make(http.Header, len(trailer))
		}
		b.res.Trailer[name] = values
	}
	return nil
}
