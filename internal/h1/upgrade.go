package h1

import (
	"errors"
	"io"
	"net"
	"sync"
)

// Upgraded is the body of a response 101. It is the connection, which then belongs to the caller: the end of
// the request's context does not close it.
type Upgraded interface {
	io.ReadWriteCloser
	io.WriterTo   // splices where it can
	io.ReaderFrom // splices where it can
	CloseWrite() error

	// NetConn returns the connection and what was read from it already and is to be read first.
	NetConn() (conn net.Conn, read []byte)
}

// upgraded is the connection after 101 Switching Protocols.
type upgraded struct {
	conn        net.Conn
	releaseSlot func() // gives up the place among the open connections
	once        sync.Once
	read        []byte
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

// CloseWrite ends what is sent, if the connection can: TCP and TLS can.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (u *upgraded) NetConn() (net.Conn, []byte) { return u.conn, u.read }
