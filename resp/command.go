// Package resp speaks Redis's protocol: it reads commands as clients and proxies send them, arrays of bulk strings, reads replies, and
// writes replies in RESP2 or RESP3.
//
// It knows no command's meaning, opens no connection and never reads more than it was asked for. The stand-ins of
// sidecar, and handoffs, call it.
package resp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// Limits bound what one command may take.
type Limits struct {
	Arguments int // with the command's name
	Bytes     int // of all arguments together
}

// Error says how a peer broke the protocol or a limit. Where in the stream the next command begins is then unknown: tell
// the peer, as an error reply, and close the connection.
type Error struct{ reason string }

func (e *Error) Error() string { return "Protocol error: " + e.reason }

func broken(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// ReadCommand reads the next command: its name, as it was spelled, and its arguments. They are the caller's. Memory is
// taken as bytes arrive, not as a peer announces them. It returns io.EOF at the end between two commands,
// io.ErrUnexpectedEOF within one, and an *Error for what is no command or exceeds a limit; inline commands are refused.
func ReadCommand(r *bufio.Reader, limits Limits) ([][]byte, error) {
	count := 0
	for count == 0 { // an empty array asks for nothing
		if _, err := r.Peek(1); err != nil {
			return nil, err
		}
		var err error
		if count, err = readLength(r, '*'); err != nil {
			return nil, err
		}
	}
	if count > limits.Arguments {
		return nil, broken("a command of %d arguments, and %d is the limit", count, limits.Arguments)
	}
	args := make([][]byte, 0, min(count, 16))
	left := limits.Bytes
	for range count {
		size, err := readLength(r, '$')
		if err != nil {
			return nil, err
		}
		if size > left {
			return nil, broken("a command of more than %d bytes, which is the limit", limits.Bytes)
		}
		left -= size
		arg, err := readBytes(r, size)
		if err != nil {
			return nil, err
		}
		args = append(args, arg)
	}
	return args, nil
}

// maxDigits keeps a length within an int.
const maxDigits = 10

// readLength reads a line of a type byte and a length.
func readLength(r *bufio.Reader, kind byte) (int, error) {
	c, err := r.ReadByte()
	if err != nil {
		return 0, unexpected(err)
	}
	if c != kind {
		return 0, broken("want %q, got %q: commands are arrays of bulk strings", kind, c)
	}
	n := 0
	for digits := 0; ; digits++ {
		c, err := r.ReadByte()
		if err != nil {
			return 0, unexpected(err)
		}
		if c == '\r' && digits > 0 {
			return n, readNewline(r)
		}
		if c < '0' || c > '9' || digits == maxDigits {
			return 0, broken("a length after %q has at most %d digits, got %q", kind, maxDigits, c)
		}
		n = n*10 + int(c-'0')
	}
}

func readNewline(r *bufio.Reader) error {
	c, err := r.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	if c != '\n' {
		return broken("want the end of a line, got %s", strconv.QuoteRune(rune(c)))
	}
	return nil
}

// readBytes reads a bulk string of the size and its line's end.
func readBytes(r *bufio.Reader, size int) ([]byte, error) {
	const step = 64 << 10
	b := make([]byte, 0, min(size, step))
	for len(b) < size {
		from := len(b)
		b = slices.Grow(b, min(size-from, max(step, from)))
		b = b[:min(size, cap(b))]
		if _, err := io.ReadFull(r, b[from:]); err != nil {
			return nil, unexpected(err)
		}
	}
	c, err := r.ReadByte()
	if err != nil {
		return nil, unexpected(err)
	}
	if c != '\r' {
		return nil, broken("a bulk string is longer than its %d bytes", size)
	}
	return b, readNewline(r)
}

// unexpected is the end of the stream within a command.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
