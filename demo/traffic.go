package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node/lookups"
	"github.com/cachemesh/cachemesh/process"
)

// hitWindow is what the hit rates of the summary are taken over.
const hitWindow = 30 * time.Second

// Traffic is what a region's load generator and applications have seen: since the start in Summary, of the last second in
// a live line.
type Traffic struct {
	Region       string   `json:"region"`
	Requests     int64    `json:"requests"`
	RPS          float64  `json:"requests_per_second"`
	Errors       int64    `json:"errors"`
	P50          float64  `json:"p50_ms"`
	P99          float64  `json:"p99_ms"`
	Checked      int64    `json:"checked"` // answers held against the database
	Wrong        int64    `json:"wrong"`
	HitRate      *float64 `json:"hit_rate"`       // as the applications count, over the last 30 s
	RedisHitRate *float64 `json:"redis_hit_rate"` // as Redis counts what they look for, over the same time
	DBReads      int64    `json:"db_reads"`
	CacheErrors  int64    `json:"cache_errors"`
}

// Summary is what the demo ends with.
type Summary struct {
	Seconds float64   `json:"seconds"`
	Regions []Traffic `json:"regions"`
	Failed  []string  `json:"failed"` // empty if all went well
}

// loadLine is a line of the load generator's output.
type loadLine struct {
	Requests int64   `json:"requests"`
	Errors   int64   `json:"errors"`
	RPS      float64 `json:"rps"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Checked  int64   `json:"checked"`
	Wrong    int64   `json:"wrong"`
	Final    bool    `json:"final"`
}

// counts are cumulative counters of a region at one moment.
type counts struct {
	at                     time.Time
	appHits, appMisses     int64
	redisHits, redisMisses int64
	dbReads, cacheErrors   int64
}

// regionMeter collects a region's figures.
type regionMeter struct {
	layout regionLayout
	nodes  map[string]*redis.Client // by address
	load   *process.Process

	mu      sync.Mutex
	last    loadLine // of the last second
	total   loadLine
	history []counts
	first   counts
	roles   map[string]string // what each node says of itself, by address
	redis   hits              // of primaries, while they were
	seen    map[string]hits   // what each node has counted, by address
}

// hits is how often Redis had what it was asked for, and how often not.
type hits struct{ hits, misses int64 }

// Run drives the load until it has run for as long as was asked, or ctx ends, and returns the summary. live is called once a
// second with the figures of that second.
func (d *Demo) Run(ctx context.Context, live func(elapsed time.Duration, traffic []Traffic)) (Summary, error) {
	meters := make([]*regionMeter, len(d.layout.regions))
	for i, r := range d.layout.regions {
		m := &regionMeter{layout: r, nodes: map[string]*redis.Client{}, roles: map[string]string{}, seen: map[string]hits{}}
		for _, n := range r.nodes {
			options, err := d.layout.redis(n).Options()
			if err != nil {
				return Summary{}, err
			}
			options.ReadTimeout = time.Second
			m.nodes[n.address()] = redis.NewClient(options)
		}
		defer m.close()
		meters[i] = m
		m.sample(ctx)
		if d.layout.options.NoLoad {
			continue
		}
		if err := d.startLoad(ctx, m); err != nil {
			return Summary{}, err
		}
	}
	d.follow(ctx, meters, live)
	return d.summary(meters), nil
}

func (d *Demo) startLoad(ctx context.Context, m *regionMeter) error {
	command := d.layout.loadCommand(m.layout)
	name := m.layout.name + "-load"
	lines, output := io.Pipe()
	p, err := process.Start(ctx, process.Spec{Name: name, Path: command[0], Args: command[1:], Log: d.layout.log(name), Stdout: output})
	if err != nil {
		return err
	}
	m.load = p
	go func() {
		<-p.Done()
		output.Close()
	}()
	go m.read(lines)
	return nil
}

// read takes in the load generator's lines until there are no more.
func (m *regionMeter) read(lines io.Reader) {
	scanner := bufio.NewScanner(lines)
	for scanner.Scan() {
		var line loadLine
		if json.Unmarshal(scanner.Bytes(), &line) != nil {
			continue
		}
		m.mu.Lock()
		if line.Final {
			m.total = line
		} else {
			m.last = line
			m.total.Requests += line.Requests
			m.total.Errors += line.Errors
			m.total.Checked += line.Checked
			m.total.Wrong += line.Wrong
		}
		m.mu.Unlock()
	}
}

// follow samples once a second until the loads are done, the time is up or ctx ends; then it stops the loads.
func (d *Demo) follow(ctx context.Context, meters []*regionMeter, live func(time.Duration, []Traffic)) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var timeUp <-chan time.Time
	if d.layout.options.For > 0 {
		timeUp = time.After(time.Until(d.ready.Add(d.layout.options.For)))
	}
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-timeUp:
			running = false
		case <-ticker.C:
		}
		d.meet(meters)
		traffic := make([]Traffic, len(meters))
		var wait sync.WaitGroup
		for i, m := range meters {
			wait.Go(func() {
				m.sample(context.WithoutCancel(ctx))
				traffic[i] = m.traffic(false)
			})
		}
		wait.Wait()
		d.refreshEndpoints(meters)
		live(time.Since(d.ready), traffic)
	}
	for _, m := range meters {
		if m.load != nil {
			m.load.Stop(10 * time.Second)
		}
	}
}

// refreshEndpoints rewrites endpoints.json when a node's role or pid, or an Envoy's pid, has changed.
func (d *Demo) refreshEndpoints(meters []*regionMeter) {
	changed := d.readEnvoyPIDs()
	d.mu.Lock()
	pids := maps.Clone(d.pids)
	d.mu.Unlock()
	for i := range d.endpoints.Regions {
		roles := meters[i].currentRoles()
		for j := range d.endpoints.Regions[i].Shards {
			for k := range d.endpoints.Regions[i].Shards[j].Nodes {
				n := &d.endpoints.Regions[i].Shards[j].Nodes[k]
				if role := roles[n.Address]; role != "" && role != n.Role {
					n.Role, changed = role, true
				}
				if pid := pids[n.Address]; pid != n.PID {
					n.PID, changed = pid, true
				}
			}
		}
	}
	if changed {
		if err := d.endpoints.write(d.layout.options.Dir); err != nil {
			d.layout.options.Notes("endpoints.json could not be rewritten: %v", err)
		}
	}
}

// sample reads the counters of the applications and the primaries, as close together as it can.
func (m *regionMeter) sample(ctx context.Context) {
	c := counts{at: time.Now()}
	for _, s := range m.layout.sidecars {
		stats, err := fetchStats(ctx, "http://"+s.app+"/stats")
		if err != nil {
			return
		}
		c.appHits += stats.Hits
		c.appMisses += stats.Misses
		c.cacheErrors += stats.CacheErrors
		c.dbReads += stats.Reads
	}
	roles, seen := map[string]string{}, map[string]hits{}
	for address, client := range m.nodes {
		info, err := client.InfoMap(ctx, append([]string{"replication"}, lookups.Sections...)...).Result()
		if err != nil {
			roles[address] = "down"
			continue
		}
		found, missed := lookups.Of(info)
		seen[address] = hits{found, missed}
		roles[address] = "replica"
		if info["Replication"]["role"] == "master" {
			roles[address] = "primary"
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for address, now := range seen {
		before, known := m.seen[address]
		// A node that has started anew counts from 0.
		if known && roles[address] == "primary" && now.hits >= before.hits && now.misses >= before.misses {
			m.redis.hits += now.hits - before.hits
			m.redis.misses += now.misses - before.misses
		}
		m.seen[address] = now
	}
	c.redisHits, c.redisMisses = m.redis.hits, m.redis.misses
	maps.Copy(m.roles, roles)
	if len(m.history) == 0 {
		m.first = c
	}
	m.history = append(m.history, c)
	for len(m.history) > 2 && c.at.Sub(m.history[1].at) >= hitWindow {
		m.history = m.history[1:]
	}
}

// traffic is the region's figures: of the whole run, or of the last second.
func (m *regionMeter) traffic(whole bool) Traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := Traffic{Region: m.layout.name, Requests: m.total.Requests, RPS: m.last.RPS, Errors: m.total.Errors,
		P50: m.last.P50, P99: m.last.P99, Checked: m.total.Checked, Wrong: m.total.Wrong}
	if whole {
		t.RPS, t.P50, t.P99 = m.total.RPS, m.total.P50, m.total.P99
	}
	if len(m.history) == 0 {
		return t
	}
	from, to := m.history[0], m.history[len(m.history)-1]
	t.HitRate = rate(to.appHits-from.appHits, to.appMisses-from.appMisses)
	t.RedisHitRate = rate(to.redisHits-from.redisHits, to.redisMisses-from.redisMisses)
	t.DBReads = to.dbReads - m.first.dbReads
	t.CacheErrors = to.cacheErrors - m.first.cacheErrors
	return t
}

func (m *regionMeter) close() {
	for _, c := range m.nodes {
		c.Close()
	}
}

func (d *Demo) summary(meters []*regionMeter) Summary {
	s := Summary{Seconds: time.Since(d.ready).Seconds(), Failed: []string{}}
	for _, m := range meters {
		t := m.traffic(true)
		s.Regions = append(s.Regions, t)
		fail := func(format string, args ...any) {
			s.Failed = append(s.Failed, m.layout.name+": "+fmt.Sprintf(format, args...))
		}
		switch {
		case m.load == nil:
			continue
		case !m.final():
			fail("the load generator ended without a result: %v: see %s", m.load.Err(), d.layout.log(m.layout.name+"-load"))
		case t.Requests == 0:
			fail("not one request was made")
		}
		if t.Errors > 0 {
			fail("%d of %d requests failed", t.Errors, t.Requests)
		}
		if t.Wrong > 0 {
			fail("%d of %d checked answers were wrong", t.Wrong, t.Checked)
		}
		if t.CacheErrors > 0 {
			fail("%d cache operations failed (the database answered instead)", t.CacheErrors)
		}
	}
	return s
}

func (m *regionMeter) currentRoles() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.roles)
}

func (m *regionMeter) final() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total.Final
}

func rate(hits, misses int64) *float64 {
	if hits+misses <= 0 {
		return nil
	}
	r := float64(hits) / float64(hits+misses)
	return &r
}

// appStats is what is used of an application's /stats.
type appStats struct {
	Hits        int64 `json:"cache_hits"`
	Misses      int64 `json:"cache_misses"`
	CacheErrors int64 `json:"cache_errors"`
	Reads       int64 `json:"db_reads"`
}

func fetchStats(ctx context.Context, url string) (appStats, error) {
	var stats appStats
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return stats, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return stats, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return stats, errors.New(resp.Status)
	}
	return stats, json.NewDecoder(resp.Body).Decode(&stats)
}
