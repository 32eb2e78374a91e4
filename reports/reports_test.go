package reports

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
)

func TestTheLargestReportFitsIntoAMessage(t *testing.T) {
	r := &Report{Agent: &Agent{Name: strings.Repeat("n", MaxName), Region: "r", Version: "v"}}
	shard := strings.Repeat("s", 63) // the longest that mesh.yaml takes
	for range Max {
		r.Verdicts = append(r.Verdicts, &Verdict{Shard: shard, Epoch: 1 << 62, Address: "[1111:2222:3333:4444:5555:6666:7777:8888]:65535", Down: true,
			SilentMs: 1 << 40, Error: strings.Repeat("e", MaxError)})
		r.Endpoints = append(r.Endpoints, &Endpoint{Shard: shard, Address: "hold/" + shard + ".sock"})
	}
	for range MaxEvents {
		r.Events = append(r.Events, make([]byte, MaxEvent))
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	const most = 4 << 20
	if size := proto.Size(r); size > most {
		t.Errorf("it has %d bytes, and gRPC takes %d", size, most)
	}
}

func TestInstructionsAreChecked(t *testing.T) {
	good := func() *Instructions {
		return &Instructions{IntervalMs: 100, DownAfterMs: 300, Targets: []*Target{{Shard: "s", Epoch: 1, Address: "127.0.0.1:7001", RunId: "abc"}}}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Instructions){
		"interval_ms 0":                     func(m *Instructions) { m.IntervalMs = 0 },
		"down_after_ms 50":                  func(m *Instructions) { m.DownAfterMs = 50 },
		"down_after_ms 4000000":             func(m *Instructions) { m.DownAfterMs = 4_000_000 },
		"targets[0].shard is empty":         func(m *Instructions) { m.Targets[0].Shard = "" },
		"targets[0].address is not IP":      func(m *Instructions) { m.Targets[0].Address = "redis:7001" },
		"targets[0].run_id has 254 bytes":   func(m *Instructions) { m.Targets[0].RunId = strings.Repeat("x", MaxName+1) },
		"targets[0].access has 16385":       func(m *Instructions) { m.Targets[0].Access = strings.Repeat("x", MaxAccess+1) },
		"topology has 16777217 bytes":       func(m *Instructions) { m.Topology = make([]byte, MaxTopology+1) },
		"warming has 1048577 bytes":         func(m *Instructions) { m.Warming = make([]byte, MaxWarming+1) },
		"targets has 10001 entries and may": func(m *Instructions) { m.Targets = make([]*Target, Max+1) },
	} {
		m := good()
		spoil(m)
		if err := m.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestShortenKeepsWholeCharacters(t *testing.T) {
	if got := Shorten("short"); got != "short" {
		t.Errorf("%q", got)
	}
	for n := range 4 {
		got := Shorten(strings.Repeat("x", n) + strings.Repeat("€", MaxError))
		if len(got) > MaxError || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}
