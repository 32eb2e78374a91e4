package resp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

var limits = Limits{Arguments: 4, Bytes: 32}

func TestReadCommand(t *testing.T) {
	in := "*1\r\n$4\r\nPING\r\n" + "*0\r\n" + "*2\r\n$3\r\nget\r\n$4\r\n\r\n\x00\xff\r\n" + "*3\r\n$3\r\nset\r\n$0\r\n\r\n$1\r\nv\r\n"
	want := [][]string{{"PING"}, {"get", "\r\n\x00\xff"}, {"set", "", "v"}}
	for name, source := range map[string]io.Reader{"at once": strings.NewReader(in), "byte by byte": iotest.OneByteReader(strings.NewReader(in))} {
		r := bufio.NewReader(source)
		var got [][]string
		for {
			args, err := ReadCommand(r, limits)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(name, err)
			}
			var words []string
			for _, a := range args {
				words = append(words, string(a))
			}
			got = append(got, words)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(name, diff)
		}
	}
}

func TestReadCommandRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"GET a\r\n":        `want '*', got 'G'`,
		"\r\n":             `want '*', got '\r'`,
		"*1\r\n+PING\r\n":  `want '$', got '+'`,
		"*-1\r\n":          `at most 10 digits, got '-'`,
		"*\r\n":            `at most 10 digits, got '\r'`,
		"*1\r\n$-1\r\n":    `at most 10 digits, got '-'`,
		"*99999999999\r\n": `at most 10 digits, got '9'`,
		"*1\n":             `at most 10 digits, got '\n'`,
		"*1\r$":            `want the end of a line, got '$'`,
		"*5\r\n":           `a command of 5 arguments, and 4 is the limit`,
		"*1\r\n$33\r\n":    `a command of more than 32 bytes, which is the limit`,
		"*2\r\n$31\r\n" + strings.Repeat("x", 31) + "\r\n$2\r\n": `a command of more than 32 bytes`,
		"*1\r\n$1\r\nab\r\n": `longer than its 1 bytes`,
		"*1\r\n$1\r\na\rb":   `want the end of a line, got 'b'`,
	} {
		_, err := ReadCommand(bufio.NewReader(strings.NewReader(in)), limits)
		var refused *Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", in, err, want)
		}
	}
}

func TestReadCommandEndsWithinACommand(t *testing.T) {
	whole := "*2\r\n$3\r\nget\r\n$1\r\na\r\n"
	for i := 1; i < len(whole); i++ {
		if _, err := ReadCommand(bufio.NewReader(strings.NewReader(whole[:i])), limits); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: error %v", whole[:i], err)
		}
	}
	broken := errors.New("broken")
	if _, err := ReadCommand(bufio.NewReader(iotest.ErrReader(broken)), limits); err != broken {
		t.Errorf("error %v, want the reader's own", err)
	}
}

// A peer that announces much and sends nothing takes no memory.
func TestReadCommandTakesMemoryAsBytesArrive(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := bufio.NewReader(strings.NewReader("*1000000000\r\n$1000000000\r\nx"))
	if _, err := ReadCommand(r, Limits{Arguments: 1 << 30, Bytes: 1 << 30}); err != io.ErrUnexpectedEOF {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes were allocated", used)
	}
	value := strings.Repeat("v", 1<<20)
	args, err := ReadCommand(bufio.NewReader(strings.NewReader(fmt.Sprintf("*1\r\n$%d\r\n%s\r\n", len(value), value))), Limits{Arguments: 1, Bytes: 1 << 20})
	if err != nil || len(args) != 1 || string(args[0]) != value {
		t.Errorf("a long value: %d arguments, %v", len(args), err)
	}
}

// What is read is, written again, what was consumed; nothing else is ever accepted.
func FuzzReadCommand(f *testing.F) {
	for _, seed := range []string{
		"*1\r\n$4\r\nPING\r\n", "*2\r\n$3\r\nget\r\n$1\r\na\r\n*0\r\n", "*1\r\n$-1\r\n", "PING\r\n", "*3\r\n$3\r\nset\r\n$0\r\n\r\n$1\r\n\n\r\n", "*01\r\n$1\r\na\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		source := bytes.NewReader(in)
		r := bufio.NewReaderSize(source, 16)
		for {
			args, err := ReadCommand(r, limits)
			if err != nil {
				var refused *Error
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.As(err, &refused) {
					t.Fatalf("error %v", err)
				}
				return
			}
			total := 0
			var again bytes.Buffer
			w := NewWriter(&again)
			w.Array(len(args))
			for _, a := range args {
				total += len(a)
				w.Bulk(string(a))
			}
			w.Flush()
			if len(args) == 0 || len(args) > limits.Arguments || total > limits.Bytes {
				t.Fatalf("%d arguments of %d bytes", len(args), total)
			}
			consumed := in[:len(in)-source.Len()-r.Buffered()]
			// Leading zeros are the one freedom of a length.
			if !bytes.HasSuffix(consumed, again.Bytes()[again.Len()-len(args[len(args)-1])-2:]) {
				t.Fatalf("%q was read as %q", consumed, again.Bytes())
			}
			twice, err := ReadCommand(bufio.NewReader(&again), limits)
			if diff := cmp.Diff(args, twice); err != nil || diff != "" {
				t.Fatalf("%v %s", err, diff)
			}
		}
	})
}

func BenchmarkReadCommand(b *testing.B) {
	one := []byte("*3\r\n$3\r\nset\r\n$8\r\nsome:key\r\n$64\r\n" + strings.Repeat("v", 64) + "\r\n")
	source := bytes.NewReader(nil)
	r := bufio.NewReader(source)
	b.ReportAllocs()
	for b.Loop() {
		source.Reset(one)
		r.Reset(source)
		if _, err := ReadCommand(r, Limits{Arguments: 16, Bytes: 1 << 20}); err != nil {
			b.Fatal(err)
		}
	}
}
