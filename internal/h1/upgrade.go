package h1

import (
	"errors"
	"io"
	"net"
	"sync"
)

// Upgraded is the body of a 101 response: the connection itself. The caller owns it: the end of the request's
// context does not close it.
type Upgraded interface {
	io.ReadWriteCloser
	io.WriterTo   // copies in the kernel if both ends are TCP connections
	io.ReaderFrom // likewise
	CloseWrite() error

	// NetConn returns the connection and the bytes that were already read from it. They come before those
	// that conn.Read returns.
	NetConn() (conn net.Conn, read []byte)
}

// upgraded implements Upgraded.
type upgraded struct {
	conn        net.Conn
	releaseSlot func() // of the host
	once        sync.Once
	read        []byte // not yet returned by Read
	closeErr    error
}

func (u *upgraded) Read(p []byte) (int, error) {
	if len(u.read) > 0 {
		n := copy(p, u.read)
		u.read = u.read[n:]
		return n, nil
	}
	return u.conn.Read(p)
}

func (u *upgraded) Write(p []byte) (int, error) { return u.conn.Write(p) }

func (u *upgraded) WriteTo(w io.Writer) (total int64, err error) {
	if len(u.read) > 0 {
		n, err := w.Write(u.read)
		u.read = u.read[n:]
		total = int64(n)
		if err != nil {
			return total, err
		}
	}
	n, err := io.Copy(w, u.conn)
	return total + n, err
}

func (u *upgraded) ReadFrom(r io.Reader) (int64, error) { return io.Copy(u.conn, r) }

func (u *upgraded) Close() error {
	u.once.Do(func() {
		u.closeErr = u.conn.Close()
		u.releaseSlot()
	})
	return u.closeErr
}

// CloseWrite closes the sending side of the connection. TCP, Unix sockets and TLS support it. For other
// connections it returns errors.ErrUnsupported.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (u *upgraded) NetConn() (net.Conn, []byte) { return u.conn, u.read }
