package resp

import (
	"bufio"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestReadValue(t *testing.T) {
	for text, want := range map[string]any{
		"+OK\r\n":                             "OK",
		"-ERR no\r\n":                         Failure("ERR no"),
		"!6\r\nERR no\r\n":                    Failure("ERR no"),
		":-12\r\n":                            int64(-12),
		"$3\r\na\r\n\r\n":                     []byte("a\r\n"),
		"$-1\r\n":                             nil,
		"*-1\r\n":                             nil,
		"_\r\n":                               nil,
		"#t\r\n":                              true,
		",1.5\r\n":                            "1.5",
		"*2\r\n:1\r\n*1\r\n+a\r\n":            []any{int64(1), []any{"a"}},
		"%1\r\n+k\r\n:1\r\n":                  []any{"k", int64(1)},
		">2\r\n$1\r\na\r\n*1\r\n$2\r\nbc\r\n": Push{[]byte("a"), []any{[]byte("bc")}},
		">2\r\n$10\r\ninvalidate\r\n_\r\n+OK\r\n": Push{[]byte("invalidate"), nil},
	} {
		got, err := ReadValue(bufio.NewReader(strings.NewReader(text)), 20)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %#v, %v, want %#v", text, got, err, want)
		}
	}
}

func TestReadValueRefuses(t *testing.T) {
	for _, text := range []string{
		"\r\n", "+OK\n", "OK\r\n", ":x\r\n", "$x\r\n", "$21\r\n", "*1\r\n$21\r\n", "*3\r\n$10\r\n0123456789\r\n$10\r\n0123456789\r\n$1\r\n",
		"*99999999\r\n", "$1\r\nab\r\n", "+" + strings.Repeat("a", 5000) + "\r\n", strings.Repeat("*1\r\n", 20),
	} {
		var broken *Error
		if v, err := ReadValue(bufio.NewReader(strings.NewReader(text)), 20); !errors.As(err, &broken) {
			t.Errorf("%.40q is %#v, %v, want an *Error", text, v, err)
		}
	}
	for text, want := range map[string]error{"": io.EOF, "+O": io.ErrUnexpectedEOF, "$3\r\nab": io.ErrUnexpectedEOF, "*2\r\n:1\r\n": io.ErrUnexpectedEOF} {
		if _, err := ReadValue(bufio.NewReader(strings.NewReader(text)), 20); err != want {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
}
