package lane

import (
	"github.com/cachemesh/cachemesh/handoff"
)

// homes are the shards of keys in the ring before a handoff and in the one after it; both are the same while there is none.
type homes []string

const nowhere = "\x00" // the keys have no shard in common

func (p *policy) homes(k []byte) homes {
	if p.pair != nil {
		before, after := p.pair.Owners(k)
		return homes{before, after}
	}
	return homes{p.shard(k)}
}

// with are the shards that both have in common.
func (h homes) with(other homes) homes {
	common := make(homes, len(h))
	for i := range h {
		if common[i] = nowhere; i < len(other) && h[i] == other[i] {
			common[i] = h[i]
		}
	}
	return common
}

// together says whether keys that have these in common are on one shard: in either ring on this lane's, while there are two.
func (p *policy) together(h homes) bool {
	for _, shard := range h {
		if p.pair == nil && shard != nowhere || p.pair != nil && shard == p.here {
			return true
		}
	}
	return false
}

// elsewhere removes what was written at its other owner, before the batch is answered.
func (e *executor) elsewhere(b *batch) {
	var all []handoff.Removal
	for _, k := range b.keys {
		if k.moves {
			r := handoff.Removal{Key: b.raw[k.from:k.to]}
			if k.opens {
				r.Hold = k.holdOff
			}
			all = append(all, r)
		}
	}
	e.s.config.Both.Unlink(e.s.policy.Load().pair, e.s.config.Shard, all)
}

// refuseMoving answers writes of moving keys with an error while too many wait for their other owner.
func (e *executor) refuseMoving(b *batch) {
	err := e.s.config.Both.Full(e.s.policy.Load().pair)
	if err == nil {
		return
	}
	reply := failure("ERR " + err.Error() + "; nothing was written")
	for i := range b.items {
		it := &b.items[i]
		for _, k := range b.keys[it.key:it.keyEnd] {
			if k.moves && it.asks() {
				it.reply = reply
			}
		}
	}
}

// settle waits until nothing is on its way to the shard that came before, nor any connection of another login.
func (e *executor) settle(login uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := e.number
	if e.pending.empty() {
		last--
	}
	for e.done < last || e.busy {
		e.quiet.Wait()
	}
	if e.up != nil && e.up.login != login {
		e.disconnect()
	}
}

// settle has Settled say no until nothing is on its way that goes by the policy before.
func (s *Server) settle(before *policy) {
	login := s.target.Load().Login
	s.unsettled.Add(1)
	go func() {
		defer s.unsettled.Add(-1)
		for _, e := range s.executors {
			e.settle(login)
		}
		before.large.Wait()
	}()
}

// Settled says whether all that goes on is as the last View says: writes that began before its Pair or its Login came are answered, and
// connections of logins before are closed.
func (s *Server) Settled() bool { return s.unsettled.Load() == 0 }

// goBy is the policy that a large command goes by, until it is done.
func (s *Server) goBy() *policy {
	s.knownPolicy()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.policy.Load()
	p.large.Add(1)
	return p
}
