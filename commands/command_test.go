package commands_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/commands"
)

func TestCatalogue(t *testing.T) {
	for i, c := range commands.All() {
		if i > 0 && commands.All()[i-1].Name >= c.Name {
			t.Errorf("%s comes after %s", c.Name, commands.All()[i-1].Name)
		}
		if c.Verdict != commands.VerdictWorks && c.Why == "" {
			t.Errorf("%s is %s without a reason", c.Name, c.Verdict)
		}
		fails := c.Verdict == commands.VerdictRefused || c.Verdict == commands.VerdictUnknown
		if fails && c.Instead == "" {
			t.Errorf("%s is %s without a remedy", c.Name, c.Verdict)
		}
		if fails != (c.Error != "") {
			t.Errorf("%s is %s, and its error is %q", c.Name, c.Verdict, c.Error)
		}
		if c.Error != "" {
			if _, ok := commands.ExplainError(c.Error); !ok {
				t.Errorf("the error of %s, %q, has no explanation", c.Name, c.Error)
			}
		}
	}
}

// TestRefusedNames holds the least that must be refused: each of these harms others or answers for one shard as if for all.
func TestRefusedNames(t *testing.T) {
	refused := commands.Listener{}.Refused()
	for _, name := range strings.Fields("select flushall flushdb keys scan randomkey config script info role watch multi exec discard") {
		if !slices.Contains(refused, name) {
			t.Errorf("%s is not refused", name)
		}
	}
	onRESP3 := slices.DeleteFunc(slices.Clone(refused), func(name string) bool { return name == "info" })
	if got := (commands.Listener{RESP3: true}).Refused(); !slices.Equal(got, onRESP3) {
		t.Errorf("RESP3 refuses %q, want all but info: %q", got, onRESP3)
	}
	if !slices.IsSorted(refused) {
		t.Errorf("not sorted: %q", refused)
	}
}

// TestRefusedWithLanes holds that nothing that changes a key passes lanes by, and that only they bring transactions.
func TestRefusedWithLanes(t *testing.T) {
	for _, resp3 := range []bool{false, true} {
		without := commands.Listener{RESP3: resp3}.Refused()
		with := commands.Listener{RESP3: resp3, Lanes: true}.Refused()
		more := slices.DeleteFunc(slices.Clone(with), func(name string) bool { return slices.Contains(without, name) })
		want := strings.Fields("bf.add bf.insert bf.loadchunk bf.madd bf.reserve getex getset xack xadd xautoclaim xclaim xdel xtrim")
		if !slices.Equal(more, want) || len(with) != len(without)+len(want) {
			t.Errorf("with lanes %q are refused too, want %q", more, want)
		}
		transactions := commands.Listener{RESP3: resp3, Lanes: true, Transactions: true}.Refused()
		less := slices.DeleteFunc(slices.Clone(with), func(name string) bool { return slices.Contains(transactions, name) })
		if want := []string{"discard", "exec", "multi"}; !slices.Equal(less, want) || !slices.Contains(transactions, "watch") {
			t.Errorf("with transactions %q are not refused, want %q", less, want)
		}
	}
}

func TestExplain(t *testing.T) {
	for name, want := range map[string]commands.Verdict{
		"get": commands.VerdictWorks, "GET": commands.VerdictWorks, " SeLeCt\n": commands.VerdictRefused,
		"pfcount": commands.VerdictCareful, "blpop": commands.VerdictUnknown,
		"json.get": commands.VerdictUnknown, "": commands.VerdictUnknown,
	} {
		c := commands.Explain(name)
		if c.Verdict != want || c.Name != strings.ToLower(strings.TrimSpace(name)) {
			t.Errorf("Explain(%q) is %s, %s, want %s", name, c.Name, c.Verdict, want)
		}
		if c.Verdict == commands.VerdictUnknown && (c.Why == "" || c.Instead == "" || c.Error == "") {
			t.Errorf("Explain(%q) does not help: %+v", name, c)
		}
	}
}

func TestExplainUnknownCommandErrors(t *testing.T) {
	for text, want := range map[string]string{
		"ERR unknown command 'BLPOP', with args beginning with: a":         "LPOP", // from Envoy
		"redis: ERR unknown command 'hexpire', with args beginning with: ": "too old",
		"ERR unknown command 'nonsense', with args beginning with: ":       "cachemesh where",
	} {
		if meaning, ok := commands.ExplainError(text); !ok || !strings.Contains(meaning, want) {
			t.Errorf("%q means %q, want it to say %q", text, meaning, want)
		}
	}
}
