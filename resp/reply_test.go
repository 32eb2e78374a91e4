package resp

import (
	"bytes"
	"errors"
	"math"
	"testing"
)

func TestReplies(t *testing.T) {
	for want, write := range map[[2]string]func(w *Writer){
		{"+OK\r\n", "+OK\r\n"}:                func(w *Writer) { w.Simple("OK") },
		{"-ERR a  b\r\n", "-ERR a  b\r\n"}:    func(w *Writer) { w.Error("ERR a\r\nb") },
		{":-7\r\n", ":-7\r\n"}:                func(w *Writer) { w.Integer(-7) },
		{"$2\r\n\r\n\r\n", "$2\r\n\r\n\r\n"}:  func(w *Writer) { w.Bulk("\r\n") },
		{"$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"}:  func(w *Writer) { w.Text("hi") },
		{"$-1\r\n", "_\r\n"}:                  func(w *Writer) { w.Null() },
		{"*-1\r\n", "_\r\n"}:                  func(w *Writer) { w.NullArray() },
		{"*2\r\n", "*2\r\n"}:                  func(w *Writer) { w.Array(2) },
		{"*3\r\n", "~3\r\n"}:                  func(w *Writer) { w.Set(3) },
		{"*6\r\n", "%3\r\n"}:                  func(w *Writer) { w.Map(3) },
		{"$3\r\n1.5\r\n", ",1.5\r\n"}:         func(w *Writer) { w.Double(1.5) },
		{"$7\r\n1000000\r\n", ",1000000\r\n"}: func(w *Writer) { w.Double(1e6) },
		{"$4\r\n-inf\r\n", ",-inf\r\n"}:       func(w *Writer) { w.Double(math.Inf(-1)) },
		{":1\r\n", "#t\r\n"}:                  func(w *Writer) { w.Bool(true) },
		{":0\r\n", "#f\r\n"}:                  func(w *Writer) { w.Bool(false) },
	} {
		for i, resp3 := range []bool{false, true} {
			var out bytes.Buffer
			w := NewWriter(&out)
			w.RESP3 = resp3
			write(w)
			if err := w.Flush(); err != nil || out.String() != want[i] {
				t.Errorf("RESP3 %v: %q, %v, want %q", resp3, out.String(), err, want[i])
			}
		}
	}
}

func TestFormatDouble(t *testing.T) {
	for f, want := range map[float64]string{0: "0", -1.25: "-1.25", 1e16: "10000000000000000", 1e20: "1e+20", 1e-7: "1e-07", math.Inf(1): "inf"} {
		if got := FormatDouble(f); got != want {
			t.Errorf("%v: %q, want %q", f, got, want)
		}
	}
	if got := FormatDouble(math.NaN()); got != "nan" {
		t.Errorf("not a number: %q", got)
	}
}

type brokenPipe struct{ error }

func (b brokenPipe) Write([]byte) (int, error) { return 0, b.error }

func TestFlushReturnsWhatBroke(t *testing.T) {
	want := errors.New("connection reset")
	w := NewWriter(brokenPipe{want})
	for range 10_000 {
		w.Simple("OK")
	}
	if err := w.Flush(); err != want {
		t.Errorf("error %v, want %v", err, want)
	}
}
