package resp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scanAll gives a Scanner the bytes step by step, as a connection would, and returns the commands in them.
func scanAll(in []byte, step, maxArgs int) (commands [][]string, err error) {
	var s Scanner
	from := 0
	for end := 0; end < len(in); {
		end = min(end+step, len(in))
		for {
			n, err := s.Next(in[from:end], maxArgs)
			if err != nil {
				return commands, err
			}
			if n == 0 {
				break
			}
			var words []string
			for _, a := range s.Args {
				words = append(words, string(a.Of(in[from:end])))
			}
			commands = append(commands, words)
			from += n
		}
	}
	return commands, nil
}

func TestScanner(t *testing.T) {
	in := []byte("*1\r\n$4\r\nPING\r\n*0\r\n*2\r\n$3\r\nget\r\n$4\r\n\r\n\x00\xff\r\n*3\r\n$3\r\nset\r\n$0\r\n\r\n$1\r\nv\r\n*2\r\n$3\r\nget")
	want := [][]string{{"PING"}, {"get", "\r\n\x00\xff"}, {"set", "", "v"}}
	for _, step := range []int{1, 2, 3, 7, len(in)} {
		got, err := scanAll(in, step, 4)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(step, err, diff)
		}
	}
}

// FuzzScanner holds it against ReadCommand, which reads the same protocol in another way.
func FuzzScanner(f *testing.F) {
	f.Add([]byte("*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nset\r\n$0\r\n\r\n$1\r\nv\r\n"), 1)
	f.Add([]byte("*2\r\n$1\r\nx\r\n$-1\r\n"), 3)
	f.Add([]byte("*12345678901\r\n"), 2)
	f.Add([]byte("*0\r\n*1\r\n$1\r\nxy\r\n"), 100)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		const args = 8
		got, err := scanAll(in, max(step, 1), args)
		r := bufio.NewReader(bytes.NewReader(in))
		var want [][]string
		for {
			command, wantErr := ReadCommand(r, Limits{Arguments: args, Bytes: 1 << 40})
			if wantErr != nil {
				var brokenThere, brokenHere *Error
				if errors.As(wantErr, &brokenThere) != errors.As(err, &brokenHere) && wantErr != io.ErrUnexpectedEOF {
					t.Errorf("got %v, want %v", err, wantErr)
				}
				break
			}
			var words []string
			for _, a := range command {
				words = append(words, string(a))
			}
			want = append(want, words)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}
