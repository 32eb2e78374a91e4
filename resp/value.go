package resp

import (
	"bufio"
	"errors"
	"strconv"
)

// Failure is an error that the peer replied with.
type Failure string

func (f Failure) Error() string { return string(f) }

// Push is what a peer says without being asked, in RESP3.
type Push []any

const (
	maxNesting = 16
	maxValues  = 1 << 20 // of one array
)

// ReadValue reads a reply of RESP2 or RESP3: nil, an int64, a bool, a string for what is a line, []byte for a string of any bytes, a Failure,
// a Push, or []any, which a map is too, keys and values in turn. Strings of more than limit bytes in one reply, and what is no reply, are an *Error.
func ReadValue(r *bufio.Reader, limit int) (any, error) {
	left := limit
	return readValue(r, &left, 0)
}

func readValue(r *bufio.Reader, left *int, depth int) (any, error) {
	if depth > maxNesting {
		return nil, broken("replies in replies, %d deep", depth)
	}
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, broken("a line of more than %d bytes", r.Size())
	}
	if err != nil {
		if len(line) > 0 {
			err = unexpected(err)
		}
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, broken("%q is no line", line)
	}
	kind, rest := line[0], line[1:len(line)-2]
	switch kind {
	case '+', ',', '(':
		return string(rest), nil
	case '-':
		return Failure(rest), nil
	case '_':
		return nil, nil
	case '#':
		return string(rest) == "t", nil
	}
	n, err := strconv.ParseInt(string(rest), 10, 64)
	if err != nil {
		return nil, broken("%q is no number", rest)
	}
	switch kind {
	case ':':
		return n, nil
	case '$', '=', '!':
		if n < 0 {
			return nil, nil
		}
		if n > int64(*left) {
			return nil, broken("a reply of more bytes than the limit allows: %d more, and %d are left", n, *left)
		}
		*left -= int(n)
		b, err := readBytes(r, int(n))
		if kind == '!' && err == nil {
			return Failure(b), nil
		}
		return b, err
	case '*', '~', '>', '%':
		if n < 0 {
			return nil, nil
		}
		if kind == '%' {
			n *= 2
		}
		if n > maxValues {
			return nil, broken("an array of %d", n)
		}
		all := make([]any, 0, min(n, 1024))
		for range n {
			v, err := readValue(r, left, depth+1)
			if err != nil {
				return nil, unexpected(err)
			}
			all = append(all, v)
		}
		if kind == '>' {
			return Push(all), nil
		}
		return all, nil
	}
	return nil, broken("%q begins no reply", kind)
}
