package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/regions/holdoff"
	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/source"
)

const (
	// What goes to a shard at once is what the budget has for a while, within bounds, or about so many bytes: meanwhile the shard serves nobody else.
	atOnce      = 5 * time.Millisecond
	keysAtLeast = 64
	keysAtMost  = 512
	bytesAtOnce = 64 << 10
	// together is how many keys one command loads at most. If any of them is there, it loads none.
	together = 32
	// shardTimeout bounds what a shard takes for that.
	shardTimeout = time.Second
	// fresh is how old a value may be when it is loaded, on a route whose removals leave no marks. Where they do, it is three quarters of the time
	// for which those stay.
	fresh = 10 * time.Second
)

// hand is a connection to one shard.
type hand struct {
	shard   *place.Shard
	pipe    *node.Pipe
	pending []int32       // items that are to be sent
	sent    []int32       // of them, those that are to be answered
	ttls    []int64       // of those that were sent, in milliseconds; 0 is for ever
	each    []int         // how many of those each command has; of a script nothing
	marked  bool          // the removal of some of these keys would leave a mark
	free    bool          // the shard held nothing, and the next transaction fails if it holds something
	there   bool          // of what was sent last, something was there
	fresh   time.Duration // how old values of these keys may be, by the strictest of their routes
	out     []byte
	err     error
}

func (s *hand) disconnect() {
	if s.pipe != nil {
		s.pipe.Close()
		s.pipe, s.free = nil, false
	}
}

func (s *hand) connect(ctx context.Context) {
	if s.shard.Address == "" {
		s.err = fmt.Errorf("shard %s has no primary now", s.shard.Name)
		return
	}
	if s.pipe, s.err = node.OpenPipe(ctx, s.shard.Address, s.shard.Epoch, s.shard.Access, shardTimeout); s.err != nil {
		return
	}
	out, replies := holdoff.AppendLoadPrepare(nil), 1
	// A primary that took over lacks marks that the one before had. Before the first epoch there was nothing to be invalidated.
	if routes := holdoff.OfAll(s.shard.Routes); len(routes) > 0 && s.shard.Epoch != 1 {
		out, replies = holdoff.AppendBegin(out, routes), 2
	}
	s.err = s.pipe.Send(out)
	for range replies {
		if s.err == nil {
			_, s.err = s.pipe.Value()
		}
	}
	if s.err != nil {
		s.disconnect()
	}
}

// send sends some of what is pending, and returns how many.
func (s *hand) send(j *job, b *source.Batch, o *outcome) int {
	s.sent, s.ttls = s.sent[:0], s.ttls[:0]
	if s.err != nil {
		return 0
	}
	if s.err = j.loader.rooms.look(s); s.err != nil {
		return 0
	}
	s.take(j, b, o)
	if len(s.sent) == 0 {
		return 0
	}
	switch out := s.out[:0]; {
	case !s.marked:
		s.out = s.appendPlain(out, b)
	case s.free:
		out = s.appendPlain(append(out, "*1\r\n$5\r\nMULTI\r\n"...), b)
		s.out = holdoff.AppendWatch(append(out, "*1\r\n$4\r\nEXEC\r\n"...))
	default:
		s.each = s.each[:0]
		out = holdoff.AppendLoad(out, len(s.sent))
		for k, i := range s.sent {
			it := &b.Items[i]
			out = holdoff.AppendLoadEntry(out, it.Key, s.ttls[k], it.Value, it.Dump)
		}
		s.out = holdoff.AppendWatch(out)
	}
	s.err = s.pipe.Send(s.out)
	return len(s.sent)
}

// take chooses what is sent. What is over or too old by now is not.
func (s *hand) take(j *job, b *source.Batch, o *outcome) {
	age := time.Since(b.Began)
	taken, size := 0, 0
	for _, i := range s.pending {
		it := &b.Items[i]
		if len(s.sent) == j.atOnce || size > bytesAtOnce {
			break
		}
		taken++
		ttl := it.TTL
		if ttl > 0 {
			if ttl -= age; j.r.Spread > 0 {
				ttl -= time.Duration(rand.Float64() * j.r.Spread * float64(ttl))
			}
			if ttl < time.Millisecond {
				o.counts.Missing++
				continue
			}
		}
		if age > s.fresh {
			b.Later = append(b.Later, it.Key)
			continue
		}
		bytes := len(it.Key) + len(it.Value)
		if !j.loader.rooms.take(s.shard.Name, bytes) {
			o.counts.Memory++
			continue
		}
		size += bytes
		s.sent, s.ttls = append(s.sent, i), append(s.ttls, ttl.Milliseconds())
	}
	s.pending = s.pending[taken:]
}

// appendPlain appends commands that load what is to be sent where nothing is in its place.
func (s *hand) appendPlain(out []byte, b *source.Batch) []byte {
	s.each = s.each[:0]
	for at := 0; at < len(s.sent); {
		n := s.alike(b, at)
		if n == 1 {
			out = appendLoad(out, &b.Items[s.sent[at]], s.ttls[at])
		} else {
			out = append(resp.AppendArray(out, 1+2*n), "$6\r\nMSETNX\r\n"...)
			for _, i := range s.sent[at : at+n] {
				out = resp.AppendBulk(resp.AppendBulk(out, b.Items[i].Key), b.Items[i].Value)
			}
		}
		s.each = append(s.each, n)
		at += n
	}
	return out
}

// alike is how many keys from one on a command can load. Where some are there, it is better to ask about each.
func (s *hand) alike(b *source.Batch, at int) int {
	n := 0
	for !s.there && n < together && at+n < len(s.sent) && s.ttls[at+n] == 0 && !b.Items[s.sent[at+n]].Dump {
		n++
	}
	return max(n, 1)
}

// appendLoad appends the command that loads an item, unless there is one.
func appendLoad(b []byte, it *source.Item, ms int64) []byte {
	if it.Dump {
		b = resp.AppendBulk(append(b, "*4\r\n$7\r\nRESTORE\r\n"...), it.Key)
		return resp.AppendBulk(resp.AppendInt(b, ms), it.Value)
	}
	if ms == 0 {
		b = append(b, "*4\r\n$3\r\nSET\r\n"...)
	} else {
		b = append(b, "*6\r\n$3\r\nSET\r\n"...)
	}
	b = append(resp.AppendBulk(resp.AppendBulk(b, it.Key), it.Value), "$2\r\nNX\r\n"...)
	if ms > 0 {
		b = resp.AppendInt(append(b, "$2\r\nPX\r\n"...), ms)
	}
	return b
}

// answers reads what became of what was sent. If the shard does not say, all that is pending is left.
func (s *hand) answers(j *job, b *source.Batch, o *outcome, left []int32) []int32 {
	if s.err == nil && len(s.sent) > 0 {
		before := o.counts.There
		s.there = false
		var again []int32
		switch {
		case !s.marked:
			again, s.err = s.replies(j, b, o)
		case s.free:
			again, s.err = s.transaction(j, b, o)
		default:
			s.err = s.script(j, b, o)
		}
		if s.err == nil && s.marked {
			s.err = s.watched()
		}
		s.there = s.there || o.counts.There > before
		if len(again) > 0 {
			s.pending = slices.Concat(again, s.pending)
		}
	}
	if s.err != nil {
		left = append(append(left, s.sent...), s.pending...)
		s.pending, s.sent = nil, s.sent[:0]
		s.disconnect()
	}
	return left
}

// replies reads the replies to plain commands. What one command has not loaded since some of it is there is to be sent again.
func (s *hand) replies(j *job, b *source.Batch, o *outcome) (again []int32, err error) {
	for _, n := range s.each {
		l, err := s.pipe.Line()
		if err != nil {
			return again, err
		}
		fate := byte(holdoff.LoadDone)
		switch {
		case l[0] == '+' || string(l) == ":1":
		case l[0] == '$' || l[0] == ':':
			fate = holdoff.LoadThere
		case l[0] == '-':
			if fate, err = refusal(string(l[1:])); err != nil {
				return again, err
			}
		default:
			return again, fmt.Errorf("shard %s answers %q", s.shard.Name, l)
		}
		if n > 1 && fate != holdoff.LoadDone && fate != holdoff.LoadMemory {
			again, s.there = append(again, s.sent[:n]...), true
		} else {
			for _, i := range s.sent[:n] {
				j.count(&b.Items[i], fate, o)
			}
		}
		s.sent = s.sent[n:]
	}
	return again, nil
}

// refusal says what an error of Redis's means for a key, or that it is the node's.
func refusal(text string) (byte, error) {
	switch word, _, _ := strings.Cut(text, " "); word {
	case "BUSYKEY":
		return holdoff.LoadThere, nil
	case "OOM":
		return holdoff.LoadMemory, nil
	case "ERR":
		return holdoff.LoadRefused, nil
	}
	return 0, fmt.Errorf("Redis answers %s", text)
}

// transaction reads the replies to MULTI and EXEC. If something is held by now, all is to be sent again.
func (s *hand) transaction(j *job, b *source.Batch, o *outcome) (again []int32, err error) {
	var refused error
	for range 1 + len(s.each) {
		if _, err := s.pipe.Value(); node.Refused(err) {
			refused = err
		} else if err != nil {
			return nil, err
		}
	}
	n, err := s.pipe.Array()
	switch {
	case node.Refused(err):
		return nil, s.full(j, b, o, errors.Join(refused, err))
	case err != nil:
		return nil, err
	case n < 0:
		again = slices.Clone(s.sent)
		s.sent = s.sent[:0]
		return again, nil
	case n != len(s.each):
		return nil, fmt.Errorf("shard %s answers %d commands of %d", s.shard.Name, n, len(s.each))
	}
	return s.replies(j, b, o)
}

// full counts what was sent as too much, if that is why the shard refuses it.
func (s *hand) full(j *job, b *source.Batch, o *outcome, refused error) error {
	if !strings.Contains(refused.Error(), "OOM") {
		return refused
	}
	for _, i := range s.sent {
		j.count(&b.Items[i], holdoff.LoadMemory, o)
	}
	s.sent = s.sent[:0]
	return nil
}

// script reads the script's reply.
func (s *hand) script(j *job, b *source.Batch, o *outcome) error {
	v, err := s.pipe.Value()
	if node.Refused(err) {
		return s.full(j, b, o, err)
	}
	if err != nil {
		return err
	}
	fates, _ := v.(string)
	if len(fates) != len(s.sent) {
		return fmt.Errorf("shard %s answers about %d keys of %d", s.shard.Name, len(fates), len(s.sent))
	}
	for k, i := range s.sent {
		j.count(&b.Items[i], fates[k], o)
	}
	s.sent = s.sent[:0]
	return nil
}

// watched reads whether the shard holds anything.
func (s *hand) watched() error {
	var v any
	for range holdoff.WatchReplies {
		var err error
		if v, err = s.pipe.Value(); err != nil {
			return err
		}
	}
	s.free = v == nil
	return nil
}
