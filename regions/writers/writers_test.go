package writers

import (
	"context"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/process/redistest"
)

func TestWriters(t *testing.T) {
	ctx := context.Background()
	c := redistest.Start(t, process.Redis{}).Client
	join := func(name string, epoch uint64) {
		t.Helper()
		var args []any
		for _, word := range Join(name, epoch) {
			args = append(args, word)
		}
		if err := c.Do(ctx, args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	list := func() []Writer {
		t.Helper()
		all, err := List(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := list(); len(all) != 0 {
		t.Errorf("%v have joined", all)
	}
	a, b := Name("an agent"), Name("an agent")
	if a == b || strings.Contains(a, " ") {
		t.Errorf("two lives of an agent are %q and %q", a, b)
	}
	join(a, 1)
	join(b, 2)
	all := list()
	if len(all) != 2 || all[0].Name != a || all[0].Epoch != 1 || all[1].Name != b || all[1].Epoch != 2 {
		t.Fatalf("%v have joined", all)
	}
	// Who joins once more meanwhile is not forgotten.
	join(b, 2)
	if err := Forget(ctx, c, all); err != nil {
		t.Fatal(err)
	}
	if left := list(); len(left) != 1 || left[0].Name != b || left[0] == all[1] {
		t.Errorf("%v are left", left)
	}
}
