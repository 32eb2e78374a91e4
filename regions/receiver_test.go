package regions

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/regions/journal"
)

// speak opens a stream to a region as an agent of another, and sends a first batch.
func speak(t *testing.T, to *testRegion, first *Batch) Link_DeliverClient {
	t.Helper()
	conn, err := grpc.NewClient(to.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := NewLinkClient(conn).Deliver(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(first); err != nil {
		t.Fatal(err)
	}
	return stream
}

func hello(to string) *Hello {
	return &Hello{Region: "us", Agent: "a", To: to, Pool: "users", Shard: "users-0"}
}

func TestWhoMayNotSpeakOrMakesNoSenseIsRefused(t *testing.T) {
	eu := newRegion(t, "eu", 1)
	eu.update()
	eu.set("user:1")
	entry := journal.Append(nil, [][]byte{[]byte("user:1")})
	packed, size := pack(journal.Append(nil, bytes.SplitAfter(bytes.Repeat([]byte("user:2 "), 1000), []byte(" "))))
	if size == 0 {
		t.Fatal("nothing was compressed")
	}
	long := strings.Repeat("x", 300)
	for name, test := range map[string]struct {
		batch *Batch
		want  codes.Code
	}{
		"nobody":               {&Batch{Sequence: 1, Removals: entry}, codes.InvalidArgument},
		"another region meant": {&Batch{Hello: hello("asia"), Sequence: 1, Removals: entry}, codes.FailedPrecondition},
		"its own region":       {&Batch{Hello: &Hello{Region: "eu", To: "eu"}, Sequence: 1, Removals: entry}, codes.FailedPrecondition},
		"a long name":          {&Batch{Hello: &Hello{Region: long, To: "eu"}}, codes.InvalidArgument},
		"no entry":             {&Batch{Hello: hello("eu"), Sequence: 1, Removals: []byte("x")}, codes.InvalidArgument},
		"a newer entry":        {&Batch{Hello: hello("eu"), Sequence: 1, Removals: []byte{2, 0}}, codes.InvalidArgument},
		"a prefix":             {&Batch{Hello: hello("eu"), Sequence: 1, Removals: journal.AppendRemovals(nil, []journal.Removal{{Op: journal.RemovePrefix, Key: []byte("u")}})}, codes.InvalidArgument},
		"damaged compression":  {&Batch{Hello: hello("eu"), Sequence: 1, Removals: packed[:len(packed)/2], Uncompressed: size}, codes.InvalidArgument},
		"a fence of nothing":   {&Batch{Hello: hello("eu"), Fences: []*Fence{{Ids: []string{"1"}}}}, codes.InvalidArgument},
		"a fence without ID":   {&Batch{Hello: hello("eu"), Fences: []*Fence{{Prefix: []byte("u")}}}, codes.InvalidArgument},
		"a ring of holes":      {&Batch{Hello: hello("eu"), Fences: []*Fence{{Ids: []string{"1"}, Ring: &Ring{Algorithm: "maglev", Size: 65537, Shard: 5}}}}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := speak(t, eu, test.batch).Recv()
			if status.Code(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	if !eu.has("user:1") {
		t.Error("what was refused was done")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	eu := newRegion(t, "eu", 1)
	eu.update()
	r := NewReceiver("eu", func(c *x509.Certificate, region, agent string) error {
		return fmt.Errorf("%s of %s is a stranger", agent, region)
	}, eu.applier, eu.links.config.Log)
	if err := r.greet(t.Context(), hello("eu")); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "a of us is a stranger") {
		t.Errorf("%v", err)
	}
}

// What comes twice, or in another order, harms nothing; what no shard here can have is done at once.
func TestDuplicatesAndWhatIsNotHere(t *testing.T) {
	eu := newRegion(t, "eu", 2)
	eu.update()
	eu.set(keysOf("user:", 10)...)
	keys := [][]byte{[]byte("user:1"), []byte("user:2"), []byte("elsewhere:1"), []byte("cachemesh:epoch"), {}, bytes.Repeat([]byte("user:"), 100_000)}
	stream := speak(t, eu, &Batch{Hello: hello("eu"), Sequence: 7, Removals: journal.Append(nil, keys)})
	for _, sequence := range []uint64{8, 7, 9} {
		if err := stream.Send(&Batch{Sequence: sequence, Removals: journal.Append(nil, keys)}); err != nil {
			t.Fatal(err)
		}
	}
	for last := uint64(0); last != 9; {
		ack, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		last = ack.GetApplied()
	}
	if eu.has("user:1") || !eu.has("user:3") {
		t.Error("other keys are gone than those that were to go")
	}
}

// A shard that hangs holds up its own removals, and those of others only when a window of them waits.
func TestAShardOnHoldDelaysItsOwnKeys(t *testing.T) {
	eu := newRegion(t, "eu", 2)
	eu.update()
	keys := keysOf("user:", 100)
	eu.set(keys...)
	eu.change(func(s []mesh.Shard) { s[0].StandIn = mesh.Hold })
	var all [][]byte
	var other []string
	for _, k := range keys {
		all = append(all, []byte(k))
		if eu.shard(k) == 1 {
			other = append(other, k)
		}
	}
	stream := speak(t, eu, &Batch{Hello: hello("eu"), Sequence: 1, Removals: journal.Append(nil, all)})
	eu.gone(other...)
	if !eu.has(keys[0]) && !eu.has(keys[1]) && !eu.has(keys[2]) && !eu.has(keys[3]) && len(other) < 90 {
		t.Error("keys of the shard on hold are gone")
	}
	eu.change(func(s []mesh.Shard) { s[0].StandIn = "" })
	if ack, err := stream.Recv(); err != nil || ack.GetApplied() != 1 {
		t.Errorf("%v, %v", ack, err)
	}
	eu.gone(keys...)
	// Without any node there is nothing to remove.
	eu.change(func(s []mesh.Shard) { s[0].StandIn = mesh.Null })
	if err := stream.Send(&Batch{Sequence: 2, Removals: journal.Append(nil, all)}); err != nil {
		t.Fatal(err)
	}
	if ack, err := stream.Recv(); err != nil || ack.GetApplied() != 2 {
		t.Errorf("%v, %v", ack, err)
	}
}

func TestPackAndUnpack(t *testing.T) {
	entry := journal.Append(nil, bytes.SplitAfter(bytes.Repeat([]byte("user:2 "), 1000), []byte(" ")))
	packed, size := pack(entry)
	if len(packed) >= len(entry)/2 {
		t.Errorf("%d bytes of %d", len(packed), len(entry))
	}
	back, err := unpack(packed, size)
	if err != nil || !bytes.Equal(back, entry) {
		t.Errorf("%d bytes, %v", len(back), err)
	}
	if same, size := pack([]byte("short")); size != 0 || string(same) != "short" {
		t.Error("what is short was compressed")
	}
	// What would take all memory is refused.
	bomb := encoder.EncodeAll(make([]byte, 2*maxMessage), nil)
	if _, err := unpack(bomb, 1); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("%d bytes became more than %d: %v", len(bomb), maxMessage, err)
	}
}
