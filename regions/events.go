package regions

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/mesh"
)

const (
	// MaxEvents is how many events are told at once, and MaxEvent how many bytes one may have.
	MaxEvents = 32
	MaxEvent  = 8 << 10
	// maxUntold bounds the events that wait for one region.
	maxUntold = 1024
	// tellTimeout bounds one attempt, of which there are tellTries, tellPause apart: then the events are dropped. Warming can do without.
	tellTimeout = time.Second
	tellTries   = 3
	tellPause   = 200 * time.Millisecond
)

// Hear has f called with events that other regions' agents tell. It must not wait. Call it before Server.
func (r *Receiver) Hear(f func(events [][]byte)) { r.hear = f }

// Tell takes events in.
func (r *Receiver) Tell(ctx context.Context, in *Events) (*Told, error) {
	if err := r.greet(ctx, in.GetHello()); err != nil {
		return nil, err
	}
	if n := len(in.GetEvents()); n > MaxEvents {
		return nil, status.Errorf(codes.InvalidArgument, "%d events at once, and at most %d may be", n, MaxEvents)
	}
	for _, e := range in.GetEvents() {
		if len(e) > MaxEvent {
			return nil, status.Errorf(codes.InvalidArgument, "an event has %d bytes and may have %d", len(e), MaxEvent)
		}
	}
	if r.hear == nil {
		return nil, status.Error(codes.Unimplemented, "this agent takes no events")
	}
	r.hear(in.GetEvents())
	return &Told{}, nil
}

// Teller passes events that the application tells this agent on to one agent of each other region. It keeps nothing: what cannot be told soon
// is dropped and counted.
type Teller struct {
	region, agent, version string
	dial                   func(region, address string) (*grpc.ClientConn, error)
	log                    *slog.Logger
	topology               atomic.Pointer[mesh.Topology]
	dropped                atomic.Uint64

	mu     sync.Mutex
	queues map[string]chan []byte // by region
	begin  chan string            // regions that have a queue now
}

// NewTeller tells nobody before Update and Run.
func NewTeller(c Config) *Teller {
	return &Teller{region: c.Region, agent: c.Agent, version: c.Version, dial: c.Dial, log: c.Log, queues: map[string]chan []byte{}, begin: make(chan string, 1024)}
}

// Update says what the region is like from now on.
func (t *Teller) Update(now *mesh.Topology) { t.topology.Store(now) }

// Dropped is how many events a region was not told.
func (t *Teller) Dropped() uint64 { return t.dropped.Load() }

// Tell has an event told to the other regions. It does not wait.
func (t *Teller) Tell(event []byte) {
	now := t.topology.Load()
	if now == nil {
		return
	}
	for region := range now.Links {
		select {
		case t.queue(region) <- event:
		default:
			t.dropped.Add(1)
		}
	}
}

func (t *Teller) queue(region string) chan []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[region]
	if q == nil {
		q = make(chan []byte, maxUntold)
		select {
		case t.begin <- region:
			t.queues[region] = q
		default: // more regions than there are
		}
	}
	return q
}

// Run tells until ctx ends.
func (t *Teller) Run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case region := <-t.begin:
			work.Go(func() { t.tellRegion(ctx, region) })
		case <-ctx.Done():
			return
		}
	}
}

// tellRegion tells one region, in order.
func (t *Teller) tellRegion(ctx context.Context, region string) {
	q := t.queue(region)
	var c connection
	defer c.close()
	for {
		var events [][]byte
		select {
		case e := <-q:
			events = append(events, e)
		case <-ctx.Done():
			return
		}
		for len(events) < MaxEvents && len(q) > 0 {
			events = append(events, <-q)
		}
		var err error
		for try := range tellTries {
			if err = t.attempt(ctx, region, &c, events); err == nil || ctx.Err() != nil {
				break
			}
			c.next()
			if try < tellTries-1 {
				select {
				case <-time.After(tellPause):
				case <-ctx.Done():
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			if t.dropped.Add(uint64(len(events))) == uint64(len(events)) {
				t.log.Warn("events cannot be told to a region, and are dropped", "region", region, "error", err)
			}
		}
	}
}

// attempt tells the region's next agent.
func (t *Teller) attempt(ctx context.Context, region string, c *connection, events [][]byte) error {
	addresses := t.topology.Load().Links[region]
	if len(addresses) == 0 {
		return status.Errorf(codes.Unavailable, "no agent of region %q is known", region)
	}
	if err := c.to(addresses[c.turn%len(addresses)], func(address string) (*grpc.ClientConn, error) { return t.dial(region, address) }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	_, err := NewLinkClient(c.conn).Tell(ctx, &Events{Hello: &Hello{Region: t.region, Agent: t.agent, Version: t.version, To: region}, Events: events})
	return err
}

// connection is one to the agents of a region, whose turn it is.
type connection struct {
	turn    int
	address string
	conn    *grpc.ClientConn
}

func (c *connection) to(address string, dial func(string) (*grpc.ClientConn, error)) (err error) {
	if c.conn != nil && c.address == address {
		return nil
	}
	c.close()
	c.address = address
	c.conn, err = dial(address)
	return err
}

func (c *connection) next() {
	c.close()
	c.turn++
}

func (c *connection) close() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn = nil
}
