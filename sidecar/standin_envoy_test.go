package sidecar

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/commands"
	"github.com/cachemesh/cachemesh/mesh"
)

// standing is a topology of which the first shard has a stand-in.
func standing(kind mesh.StandIn, addresses ...string) mesh.Topology {
	t := topology(addresses...)
	t.Pools[0].Shards[0].StandIn = kind
	return t
}

// move serves a topology and waits until Envoy has acknowledged it.
func (s *sidecar) move(t *testing.T, plane *controlPlane, to mesh.Topology) {
	t.Helper()
	before := s.status(t).XDS.Version
	plane.serve(t, time.Now().String(), build(t, to))
	eventually(t, func() error {
		if s.status(t).XDS.Version == before {
			return errors.New("Envoy has not acknowledged the change")
		}
		return nil
	})
}

// metric is the value of a metric of the agent, by the text before it.
func (s *sidecar) metric(t *testing.T, name string) string {
	t.Helper()
	_, body, err := s.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "cachemesh_sidecar_"+name); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return ""
}

// crowd is several clients under load, some of which pipeline.
type crowd struct {
	loads  []*clientLoad
	mu     sync.Mutex
	slow   time.Duration // the longest request
	errors []error
	stop   chan struct{}
	done   sync.WaitGroup
}

func (s *sidecar) startCrowd(t *testing.T) *crowd {
	c := &crowd{stop: make(chan struct{})}
	for range 4 {
		c.loads = append(c.loads, s.startLoad(t))
	}
	for i := range 4 {
		client := s.client(t)
		c.done.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-c.stop:
					return
				default:
				}
				began := time.Now()
				replies, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
					for j := range 8 {
						p.Set(t.Context(), fmt.Sprintf("%s-%d-%d", t.Name(), i, j), n, 0)
						p.Get(t.Context(), fmt.Sprintf("%s-%d-%d", t.Name(), i, j+8))
					}
					return nil
				})
				for _, r := range replies {
					if e := r.Err(); e != nil && !errors.Is(e, redis.Nil) {
						err = e
					} else if errors.Is(err, redis.Nil) {
						err = nil
					}
				}
				c.mu.Lock()
				c.slow = max(c.slow, time.Since(began))
				if err != nil {
					c.errors = append(c.errors, err)
				}
				c.mu.Unlock()
			}
		})
	}
	return c
}

func (c *crowd) finish(t *testing.T) {
	t.Helper()
	close(c.stop)
	c.done.Wait()
	for _, l := range c.loads {
		l.finish(t)
	}
	if len(c.errors) > 0 {
		t.Errorf("%d pipelines failed, the first: %v", len(c.errors), c.errors[0])
	}
}

func TestSwitchThroughAHoldCostsNoRequest(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards[0])))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.start(t)
	s.waitServing(t)
	c := s.startCrowd(t)
	c.loads[0].waitMore(t, 100)
	for round := range 20 {
		from, to := shards[round%2], shards[(round+1)%2]
		s.move(t, plane, standing(mesh.Hold, from))
		eventually(t, func() error {
			if n := s.metric(t, `held_connections{region="here",sidecar="here-0"}`); n == "0" {
				return errors.New("no connection is held")
			}
			return nil
		})
		s.move(t, plane, topology(to))
		c.loads[0].waitMore(t, 100)
	}
	c.finish(t)
	t.Logf("the slowest pipeline took %v", c.slow)
	for end, want := range map[string]bool{"released": true, "expired": false, "failed": false} {
		if got := s.metric(t, `holds_total{end="`+end+`",region="here",sidecar="here-0"}`); (got != "0") != want {
			t.Errorf("%s connections are %s", got, end)
		}
	}
	// All is on the last shard's side now, and nothing went elsewhere once it was switched away from.
	if err := everyKeyOn(t, s, newClient(t, &redis.Options{Addr: shards[0]})); err != nil {
		t.Error(err)
	}
	eventually(t, func() error {
		if in := s.status(t).StandIns; len(in) > 0 {
			return fmt.Errorf("still standing in: %v", in)
		}
		return nil
	})
}

// A switch that never ends costs no request either: the node before still answers.
func TestHoldThatLastsGoesToTheNodeBefore(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards[0])))
	plane.start(t)
	s := newSidecar(t, plane.address)
	s.start(t)
	s.waitServing(t)
	requests := s.startLoad(t)
	requests.waitMore(t, 10)
	s.move(t, plane, standing(mesh.Hold, shards[0]))
	requests.waitMore(t, 1000)
	if got := s.metric(t, `holds_total{end="expired",region="here",sidecar="here-0"}`); got == "0" {
		t.Error("no hold has expired")
	}
	// From now on nothing waits.
	began := time.Now()
	if err := s.client(t).Get(t.Context(), t.Name()).Err(); err != nil || time.Since(began) > holdAtMost {
		t.Errorf("a request after that: %v in %v", err, time.Since(began))
	}
	s.move(t, plane, topology(shards[0]))
	requests.waitMore(t, 100)
	requests.finish(t)
}

// onFirst is a key of the first of two shards, and onSecond one of the second.
func keysOfBoth(t *testing.T, s *sidecar) (onFirst, onSecond string) {
	t.Helper()
	first := newClient(t, &redis.Options{Addr: shards[0]})
	client := s.client(t)
	for i := 0; onFirst == "" || onSecond == ""; i++ {
		key := fmt.Sprintf("%s-%d", t.Name(), i)
		if err := client.Set(t.Context(), key, "value", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if first.Exists(t.Context(), key).Val() == 1 {
			onFirst = key
		} else {
			onSecond = key
		}
	}
	return onFirst, onSecond
}

// hasNull says whether the first shard is answered by the null stand-in, and the second as ever, over both protocols.
func (s *sidecar) hasNull(t *testing.T, onFirst, onSecond string) error {
	for _, at := range []*redis.Options{{Addr: s.config.Addresses.Redis, Protocol: 2}, {Addr: s.config.Addresses.RedisRESP3, Protocol: 3}} {
		client := newClient(t, at)
		if err := client.Set(t.Context(), onFirst, "other", 0).Err(); err != nil {
			return fmt.Errorf("RESP%d: SET: %w", at.Protocol, err)
		}
		values, err := client.MGet(t.Context(), onFirst, onSecond).Result()
		if err != nil || values[0] != nil || values[1] != "value" {
			return fmt.Errorf("RESP%d: MGET: %v, %w", at.Protocol, values, err)
		}
		if n, err := client.Incr(t.Context(), onFirst).Result(); n != 1 || err != nil {
			return fmt.Errorf("RESP%d: INCR: %d, %w", at.Protocol, n, err)
		}
		if fields, err := client.HGetAll(t.Context(), onFirst).Result(); len(fields) > 0 || err != nil {
			return fmt.Errorf("RESP%d: HGETALL: %v, %w", at.Protocol, fields, err)
		}
		err = client.Eval(t.Context(), "return 1", []string{onFirst}).Err()
		if err == nil {
			return fmt.Errorf("RESP%d: a script has run", at.Protocol)
		}
		if meaning, _ := commands.ExplainError(err.Error()); !strings.Contains(meaning, "runs no scripts") {
			return fmt.Errorf("RESP%d: EVAL: %w", at.Protocol, err)
		}
	}
	return nil
}

func TestNullStandsInForOneShard(t *testing.T) {
	s, plane := startServing(t)
	onFirst, onSecond := keysOfBoth(t, s)
	c := s.startCrowd(t)
	c.loads[0].waitMore(t, 10)
	s.move(t, plane, standing(mesh.Null, shards...))
	if err := s.hasNull(t, onFirst, onSecond); err != nil {
		t.Error(err)
	}
	if got := s.metric(t, `null_commands_total{region="here",shard="all-0",sidecar="here-0"}`); got == "0" {
		t.Error("no command was answered by null")
	}
	if in := s.status(t).StandIns; len(in) != 1 || in[0] != (StandInStatus{"all-0", mesh.Null}) {
		t.Errorf("standing in: %v", in)
	}
	s.move(t, plane, topology(shards...))
	if got, err := s.client(t).Get(t.Context(), onFirst).Result(); got != "value" || err != nil {
		t.Errorf("the shard is back, and GET: %q, %v", got, err)
	}
	c.finish(t)
}

// An Envoy that outlives its agent finds the next one's sockets in place, also if no control plane answers.
func TestNextAgentStandsInAtOnce(t *testing.T) {
	plane := newControlPlane(t)
	plane.serve(t, "1", build(t, topology(shards...)))
	plane.start(t)
	s := newSidecar(t, plane.address)
	agent := s.startChild(t)
	s.waitServing(t)
	onFirst, onSecond := keysOfBoth(t, s)
	s.move(t, plane, standing(mesh.Null, shards...))
	s.waitSaved(t)
	plane.stop()
	pid := s.status(t).Envoy.PID
	agent.Kill()
	if err := s.client(t).Get(t.Context(), onFirst).Err(); err == nil || errors.Is(err, redis.Nil) {
		t.Errorf("without an agent, GET: %v", err)
	}
	s.start(t)
	eventually(t, func() error { return s.hasNull(t, onFirst, onSecond) })
	eventually(t, func() error {
		if got := s.status(t).Envoy; got.PID != pid || !got.Adopted {
			return fmt.Errorf("Envoy is not adopted: %+v", got)
		}
		return nil
	})
	s.waitSource(t, fromDisk)
	s.kill(t, syscall.SIGKILL)
	eventually(t, func() error { return s.hasNull(t, onFirst, onSecond) })
	for _, path := range []string{"null", "hold"} {
		if names, err := filepath.Glob(filepath.Join(s.config.Dir, path, "*")); len(names) > 1 || err != nil {
			t.Errorf("%v, %v", names, err)
		}
	}
}
