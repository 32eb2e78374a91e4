package sidecar

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/reports"
)

const (
	resolveEvery = 15 * time.Second
	// How often verdicts are repeated, which tells a control plane that they still hold.
	repeatVerdicts     = time.Second
	repeatVerdictsDown = 250 * time.Millisecond
	// repeatPairs is how often who follows journals says how they fare. Who says nothing for long is replaced.
	repeatPairs = 500 * time.Millisecond
	// keepTargets is how long a control plane that restarts finds that its targets were probed meanwhile.
	keepTargets = 10 * time.Second
	// retryRefused is for control planes that will not change their mind soon, such as those of an older version.
	retryRefused = 15 * time.Second
	// settled is how long a stream must live for the next one to be tried soon.
	settled     = 5 * time.Second
	leaveWithin = 500 * time.Millisecond
	// gap is between reports: what changes at the same time is told together.
	gap = 5 * time.Millisecond
	// behindFor is how long a control plane must have lost the region's state for Envoy to follow another.
	behindFor = time.Second
)

// reporting keeps a stream to every control plane of the region, since each decides by itself: it reports what the Envoy has
// acknowledged and what the witness sees.
type reporting struct {
	agent     *reports.Agent
	planes    *controlPlanes
	endpoints func() map[string]string // what Envoy has acknowledged, address by shard; never changed once returned
	witness   *witness
	topology  *topologies
	link      *link
	warmth    *warmth
	rings     func() []*reports.Ring // of all pools that were or are in a handoff
	keep      time.Duration          // targets after a stream's end
	behind    func()                 // called when some control plane has been behind for a while
	log       *slog.Logger

	mu      sync.Mutex
	streams map[string]*reportStream // by IP:port of the control plane
}

// reportStream is the way to one control plane. The fields below mu are guarded by reporting.mu.
type reportStream struct {
	*asker
	name    string      // host:port that was resolved
	address string      // IP:port
	forget  *time.Timer // runs while there is no stream
	events  uint64      // number of the next event that it is told of

	current   bool // name still resolves to address
	connected bool
	behind    bool   // it cannot read the region's state now
	problem   string // why it is not connected, or why instructions are not followed
}

func newReporting(c Config, planes *controlPlanes, endpoints func() map[string]string, topology *topologies, l *link) *reporting {
	return &reporting{
		agent:  &reports.Agent{Name: c.Name, Region: c.Region, Version: c.Version, Link: c.Link},
		planes: planes, endpoints: endpoints, witness: &witness{probes: map[question]*probe{}}, topology: topology, link: l, warmth: newWarmth(c, l), rings: func() []*reports.Ring { return nil }, keep: keepTargets, behind: func() {}, log: c.Logger, streams: map[string]*reportStream{},
	}
}

// run reports until ctx ends, and then says goodbye, unless another agent takes over.
func (r *reporting) run(ctx context.Context) error {
	// Streams outlive ctx for as long as it takes to say goodbye.
	alive, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var streams sync.WaitGroup
	resolve := time.NewTicker(resolveEvery)
	defer resolve.Stop()
	for {
		for _, s := range r.resolved(r.resolve(ctx)) {
			streams.Go(func() { r.serve(ctx, alive, s) })
		}
		select {
		case <-resolve.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	time.AfterFunc(leaveWithin, end)
	streams.Wait()
	return nil
}

// resolve returns the control planes' names by IP:port. Those of a name that does not resolve now are missing.
func (r *reporting) resolve(ctx context.Context) (names map[string]string, failed map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	names, failed = map[string]string{}, map[string]bool{}
	for _, name := range r.planes.addresses {
		host, port, _ := net.SplitHostPort(name)
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			failed[name] = true
		}
		for _, ip := range ips {
			address := net.JoinHostPort(ip.Unmap().String(), port)
			if names[address] == "" {
				names[address] = name
			}
		}
	}
	return names, failed
}

// resolved returns new streams, one for each control plane that has none. One that no name resolves to any more ends when it
// breaks; a name that does not resolve at all keeps its last ones.
func (r *reporting) resolved(names map[string]string, failed map[string]bool) (begun []*reportStream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for address, s := range r.streams {
		s.current = names[address] != "" || failed[s.name]
	}
	for address, name := range names {
		if r.streams[address] == nil {
			s := &reportStream{asker: newAsker(), name: name, address: address, current: true}
			s.forget = time.AfterFunc(r.keep, func() { r.witness.forget(s.asker) })
			r.streams[address] = s
			begun = append(begun, s)
		}
	}
	return begun
}

// serve opens one stream after the other to a control plane, until ctx ends or its name resolves to others only.
func (r *reporting) serve(ctx, alive context.Context, s *reportStream) {
	defer r.witness.forget(s.asker)
	defer s.forget.Stop()
	b := retry()
	for {
		begun := time.Now()
		err := r.stream(ctx, alive, s)
		if ctx.Err() != nil || !r.broke(s, err) {
			return
		}
		if time.Since(begun) > settled {
			b.Reset()
		}
		wait := b.NextBackOff()
		switch status.Code(err) {
		case codes.Unimplemented, codes.PermissionDenied, codes.InvalidArgument:
			wait = retryRefused
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// stream reports over one stream until it ends, or ctx does. It returns why it ended.
func (r *reporting) stream(ctx, alive context.Context, s *reportStream) error {
	alive, end := context.WithCancel(alive)
	defer end()
	conn, err := r.planes.connect(alive, s.name, s.address, answerTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := reports.NewReportsClient(conn).Connect(alive)
	if err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- r.receive(s, stream) }()

	report, told := &reports.Report{Agent: r.agent}, map[string]string{}
	var noticed uint64
	repeat := time.NewTimer(0)
	defer repeat.Stop()
	for {
		var down, more int
		report.Verdicts, down = r.witness.verdicts(s.asker)
		report.Endpoints, more = changes(told, r.endpoints())
		report.Pairs = r.link.pairs()
		report.Notices, noticed = r.link.notices(noticed)
		report.Rings = r.rings()
		var tell bool
		var next uint64
		report.Events, next, tell = r.warmth.events.from(s.events)
		_, report.Dropped = r.warmth.events.counts()
		if stream.Send(report) != nil {
			return <-received // which says why
		}
		s.events = next
		r.warmth.events.sent(next)
		sent, follows := time.Now(), len(report.Pairs) > 0 || slices.ContainsFunc(report.Rings, func(g *reports.Ring) bool { return g.GetHandoff() != 0 })
		report = new(reports.Report)
		if more > 0 || tell {
			continue
		}
		switch {
		case down > 0:
			repeat.Reset(repeatVerdictsDown)
		case follows:
			repeat.Reset(repeatPairs)
		case r.witness.targets(s.asker) > 0:
			repeat.Reset(repeatVerdicts)
		default:
			repeat.Stop()
		}
		select {
		case <-s.wake:
			time.Sleep(gap - time.Since(sent))
		case <-repeat.C:
		case err := <-received:
			return err
		case <-ctx.Done():
			if context.Cause(ctx) == errSuperseded {
				return nil // the next agent speaks for the same sidecar
			}
			if stream.Send(&reports.Report{Leaving: true}) == nil {
				<-received
			}
			return nil
		}
	}
}

// receive follows instructions until the stream ends, and returns why it did.
func (r *reporting) receive(s *reportStream, stream reports.Reports_ConnectClient) error {
	// Headers say that the control plane takes reports of this agent. An end without any comes with a reason.
	if headers, err := stream.Header(); err == nil && headers != nil {
		s.forget.Stop()
		defer s.forget.Reset(r.keep)
		defer r.topology.withdraw(s)
		defer r.link.forget(s)
		defer r.warmth.forget(s)
		r.set(s, true, "")
		r.log.Info("reporting to a control plane", "control_plane", s.address)
	}
	for {
		instructions, err := stream.Recv()
		if err != nil {
			return err
		}
		problem := ""
		if err := r.follow(s, instructions); err != nil {
			problem = err.Error()
			r.log.Error("a control plane's instructions are not followed, those before are", "control_plane", s.address, "reason", err)
		}
		r.set(s, true, problem)
	}
}

// follow does as instructed, as far as it can.
func (r *reporting) follow(s *reportStream, instructions *reports.Instructions) error {
	err := r.witness.ask(s.asker, instructions)
	if text := instructions.GetTopology(); len(text) > 0 && len(text) <= reports.MaxTopology {
		err = errors.Join(err, r.topology.offer(s, s.name, text))
	}
	r.heed(s, instructions.GetBehind())
	if f := instructions.GetFollow(); f != nil && err == nil {
		r.link.follow(s, f.GetShards())
	}
	if instructions.Warming != nil {
		err = errors.Join(err, r.warmth.follow(s, instructions.GetWarming()))
	}
	return err
}

// heed notes whether a control plane is behind.
func (r *reporting) heed(s *reportStream, behind bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.behind = behind
	for _, s := range r.streams {
		if s.behind {
			time.AfterFunc(behindFor, r.behind)
			return
		}
	}
}

// isBehind says whether a control plane, by name, cannot read the region's state now, and another can.
func (r *reporting) isBehind(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	behind, others := false, false
	for _, s := range r.streams {
		switch {
		case !s.connected:
		case s.name == name && !s.behind:
			return false
		case s.name == name:
			behind = true
		case !s.behind:
			others = true
		}
	}
	return behind && others
}

// changes are the endpoints that differ from what was told, as many as a report may have, and how many are left. It adds them
// to what was told.
func changes(told, now map[string]string) (all []*reports.Endpoint, left int) {
	for shard, address := range now {
		if before, ok := told[shard]; !ok || before != address {
			all = append(all, &reports.Endpoint{Shard: shard, Address: address})
		}
	}
	for shard := range told {
		if _, ok := now[shard]; !ok {
			all = append(all, &reports.Endpoint{Shard: shard})
		}
	}
	slices.SortFunc(all, func(a, b *reports.Endpoint) int { return cmp.Compare(a.Shard, b.Shard) })
	if len(all) > reports.Max {
		all, left = all[:reports.Max], len(all)-reports.Max
	}
	for _, e := range all {
		if address, ok := now[e.Shard]; ok {
			told[e.Shard] = address
		} else {
			delete(told, e.Shard)
		}
	}
	return all, left
}

// acknowledged tells the streams that Envoy has other endpoints.
func (r *reporting) acknowledged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.streams {
		s.notify()
	}
}

func (r *reporting) set(s *reportStream, connected bool, problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.connected, s.problem = connected, problem
}

// broke notes that a stream ended, and says whether there shall be another.
func (r *reporting) broke(s *reportStream, err error) bool {
	problem := status.Convert(err).Message()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.problem != problem {
		r.log.Warn("a control plane does not get this agent's reports", "control_plane", s.address, "reason", problem)
	}
	s.connected, s.behind, s.problem = false, false, problem
	if !s.current {
		delete(r.streams, s.address)
	}
	return s.current
}

// status tells of each control plane, sorted by address.
func (r *reporting) status() []ReportingStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []ReportingStatus{}
	for _, address := range slices.Sorted(maps.Keys(r.streams)) {
		s := r.streams[address]
		_, down := r.witness.verdicts(s.asker)
		all = append(all, ReportingStatus{ControlPlane: address, Connected: s.connected, Problem: s.problem,
			Targets: r.witness.targets(s.asker), Down: down})
	}
	return all
}
