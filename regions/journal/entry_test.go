package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEntriesAreReadAsTheyWereWritten(t *testing.T) {
	for name, want := range map[string][]Removal{
		"nothing":    nil,
		"keys":       {{RemoveKey, []byte("user:1")}, {RemoveKey, []byte{}}, {RemoveKey, []byte("\x00\r\n\xff")}},
		"prefix":     {{RemovePrefix, []byte("user:")}},
		"everything": {{RemoveAll, []byte{}}},
		"long":       {{RemoveKey, bytes.Repeat([]byte("x"), MaxKey)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(nil, AppendRemovals(nil, want))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAppendIsOfKeys(t *testing.T) {
	keys := [][]byte{[]byte("a"), []byte("b")}
	if got, want := Append([]byte("before"), keys), append([]byte("before"), "\x01\x02\x01\x01a\x01\x01b"...); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := Append(nil, nil), []byte("\x01\x00"); !bytes.Equal(got, want) {
		t.Errorf("of no key: got %q, want %q", got, want)
	}
}

func TestAKeyThatIsTooLongBecomesAPrefix(t *testing.T) {
	key := bytes.Repeat([]byte("k"), MaxKey+1)
	got, err := Decode(nil, Append(nil, [][]byte{key}))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Op != RemovePrefix || !bytes.Equal(got[0].Key, key[:MaxKey]) {
		t.Errorf("got %d removals, the first of kind %d", len(got), got[0].Op)
	}
}

func TestWhatIsNoEntryIsRefused(t *testing.T) {
	for name, entry := range map[string]string{
		"empty":                    "",
		"newer":                    "\x02\x00",
		"no count":                 "\x01",
		"more removals than bytes": "\x01\x02\x01\x01a",
		"count beyond everything":  "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"number without end":       "\x01\x80",
		"unknown op":               "\x01\x01\x04\x01a",
		"no op":                    "\x01\x01\x00\x01a",
		"key longer than entry":    "\x01\x01\x01\x02a",
		"key longer than allowed":  "\x01\x01\x01\x81\x80\x40" + string(make([]byte, MaxKey+1)),
		"everything with a key":    "\x01\x01\x03\x01a",
		"bytes after":              "\x01\x01\x01\x01ab",
		"too long":                 "\x01" + string(make([]byte, MaxEntry)),
	} {
		t.Run(name, func(t *testing.T) {
			before := []Removal{{RemoveKey, []byte("before")}}
			got, err := Decode(before, []byte(entry))
			if !errors.Is(err, ErrEntry) || len(got) != 1 {
				t.Errorf("got %d removals and %v", len(got), err)
			}
		})
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	entry := Append(nil, [][]byte{[]byte("user:1"), []byte("user:2")})
	into := make([]Removal, 0, 4)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Decode(into, entry); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// What is read is written as it was, so nothing is read that nobody would write.
func FuzzDecode(f *testing.F) {
	f.Add(Append(nil, nil))
	f.Add(Append(nil, [][]byte{[]byte("user:1"), []byte("\x00")}))
	f.Add(AppendRemovals(nil, []Removal{{RemovePrefix, []byte("u")}, {RemoveAll, nil}}))
	f.Add([]byte("\x02\x00"))
	f.Fuzz(func(t *testing.T, entry []byte) {
		removals, err := Decode(nil, entry)
		if err != nil {
			if !errors.Is(err, ErrEntry) || len(removals) > 0 {
				t.Fatalf("%d removals and %v", len(removals), err)
			}
			return
		}
		again, err := Decode(nil, AppendRemovals(nil, removals))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(removals, again); d != "" {
			t.Error(d)
		}
	})
}

func TestIDsAndCursors(t *testing.T) {
	c := Cursor{3, ID{1700000000000, 7}, 42}
	if got := c.String(); got != "3 1700000000000-7 42" {
		t.Errorf("got %q", got)
	}
	if back, err := ParseCursor(c.String()); err != nil || back != c {
		t.Errorf("got %v, %v", back, err)
	}
	for _, bad := range []string{"", "3", "3 5-1", "3 5 1", "x 5-1 1", "3 5-x 1", "3 5-1 x", "3 5-1 1 1", "-1 5-1 1"} {
		if _, err := ParseCursor(bad); err == nil {
			t.Errorf("%q is taken for a cursor", bad)
		}
	}
	ordered := []Cursor{{}, {1, ID{5, 0}, 1}, {1, ID{5, 1}, 2}, {1, ID{6, 0}, 3}, {2, ID{1, 0}, 1}}
	for i := range ordered {
		for j := range ordered {
			if got := ordered[i].Compare(ordered[j]); got != min(1, max(-1, i-j)) {
				t.Errorf("%v against %v: %d", ordered[i], ordered[j], got)
			}
		}
	}
}
