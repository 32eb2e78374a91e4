package resp

import (
	"bufio"
	"io"
	"math"
	"strconv"
)

// Writer writes replies. What RESP2 has no form for is written as Redis does it there. An error of the connection sticks,
// and Flush returns it.
type Writer struct {
	// RESP3 says which protocol is spoken from now on; a connection begins with RESP2.
	RESP3 bool
	w     *bufio.Writer
}

// NewWriter returns a Writer that buffers what it writes to w until Flush.
func NewWriter(w io.Writer) *Writer { return &Writer{w: bufio.NewWriterSize(w, 16<<10)} }

// Flush sends what is buffered, or returns what kept an earlier reply from being sent.
func (w *Writer) Flush() error { return w.w.Flush() }

func (w *Writer) line(kind byte, s string) {
	w.w.WriteByte(kind)
	for i := range len(s) {
		c := s[i]
		if c == '\r' || c == '\n' {
			c = ' ' // would end the reply
		}
		w.w.WriteByte(c)
	}
	w.w.WriteString("\r\n")
}

// Simple writes a simple string such as OK.
func (w *Writer) Simple(s string) { w.line('+', s) }

// Error writes an error; by convention its first word is a code such as ERR.
func (w *Writer) Error(s string) { w.line('-', s) }

// Integer writes an integer.
func (w *Writer) Integer(n int64) { w.line(':', strconv.FormatInt(n, 10)) }

// Bulk writes a string of any bytes.
func (w *Writer) Bulk(s string) {
	w.line('$', strconv.Itoa(len(s)))
	w.w.WriteString(s)
	w.w.WriteString("\r\n")
}

// Text writes a string that is for people to read.
func (w *Writer) Text(s string) {
	if w.RESP3 {
		w.line('=', strconv.Itoa(len("txt:")+len(s)))
		w.w.WriteString("txt:" + s + "\r\n")
		return
	}
	w.Bulk(s)
}

// Null writes that there is no string.
func (w *Writer) Null() { w.null("$-1") }

// NullArray writes that there is no array; in RESP3 that is the same as no string.
func (w *Writer) NullArray() { w.null("*-1") }

func (w *Writer) null(resp2 string) {
	if w.RESP3 {
		resp2 = "_"
	}
	w.w.WriteString(resp2 + "\r\n")
}

// Array begins an array: n replies follow.
func (w *Writer) Array(n int) { w.line('*', strconv.Itoa(n)) }

// Set begins a set: n replies follow.
func (w *Writer) Set(n int) { w.aggregate('~', n, n) }

// Map begins a map: n pairs of replies follow.
func (w *Writer) Map(n int) { w.aggregate('%', n, 2*n) }

func (w *Writer) aggregate(kind byte, n, resp2 int) {
	if w.RESP3 {
		w.line(kind, strconv.Itoa(n))
		return
	}
	w.Array(resp2)
}

// Double writes a number.
func (w *Writer) Double(f float64) {
	s := FormatDouble(f)
	if w.RESP3 {
		w.line(',', s)
		return
	}
	w.Bulk(s)
}

// Bool writes a truth value; in RESP2, 1 or 0.
func (w *Writer) Bool(b bool) {
	switch {
	case w.RESP3 && b:
		w.w.WriteString("#t\r\n")
	case w.RESP3:
		w.w.WriteString("#f\r\n")
	case b:
		w.Integer(1)
	default:
		w.Integer(0)
	}
}

// FormatDouble is the shortest form that means f, with an exponent only where Redis has one.
func FormatDouble(f float64) string {
	switch a := math.Abs(f); {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	case a != 0 && (a < 1e-4 || a >= 1e17):
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}
