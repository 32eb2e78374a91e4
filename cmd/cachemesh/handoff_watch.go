package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

const (
	// watchHandoffEvery is how often a handoff is looked at, tellHandoffEvery how often that is told where there is no terminal.
	watchHandoffEvery = 200 * time.Millisecond
	tellHandoffEvery  = 5 * time.Second
	// watchPatience is how long nobody may say how a handoff fares.
	watchPatience = time.Minute
)

// handoffResult is what came of a handoff: what `shard add` and its like print.
type handoffResult struct {
	Region  string        `json:"region"`
	Pool    string        `json:"pool"`
	Shard   string        `json:"shard"`
	ID      uint64        `json:"id"`
	Undone  bool          `json:"undone"`
	Reason  string        `json:"reason"`
	Seconds float64       `json:"seconds"`
	Steps   []shards.Step `json:"steps"`
	Late    []string      `json:"late"` // sidecars that were not waited for
	// Of its last look before it ended:
	Keys     int64 `json:"keys"`
	Bytes    int64 `json:"bytes"`
	Again    int64 `json:"copied_again"`
	Cold     int64 `json:"cold"`
	Unlinked int64 `json:"unlinked"`
}

// handoffWatch looks at a handoff until it has ended. Another control plane may lead it by then.
type handoffWatch struct {
	from         *meshFlags
	region, pool string
	id           uint64
	notes        io.Writer

	result handoffResult
	bar    progress.Writer
	shown  progress.Tracker
	told   string
	at     time.Time
}

func (h *handoffWatch) until(ctx context.Context) (handoffResult, error) {
	h.result = handoffResult{Region: h.region, Pool: h.pool, ID: h.id, Late: []string{}}
	defer h.stop()
	ticker := time.NewTicker(watchHandoffEvery)
	defer ticker.Stop()
	heard := time.Now()
	for {
		ended, err := h.look(ctx)
		switch {
		case ended:
			return h.result, nil
		case err == nil:
			heard = time.Now()
		case time.Since(heard) > watchPatience:
			return h.result, fmt.Errorf("the handoff is under way, but for %s nobody says how it fares: %w", watchPatience, err)
		}
		select {
		case <-ctx.Done():
			return h.result, errors.New("interrupted: the handoff goes on: see `cachemesh status`, or end it with `cachemesh shard abort`")
		case <-ticker.C:
		}
	}
}

// look shows how far it is.
func (h *handoffWatch) look(ctx context.Context) (ended bool, err error) {
	urls, err := h.from.urls()
	if err != nil {
		return false, err
	}
	var failed error
	for _, base := range urls {
		s, err := get[controlplane.Status](ctx, h.from, base, "/v1/status")
		if err != nil {
			failed = err
			continue
		}
		if s.Region != h.region {
			continue
		}
		if now := handoffOf(s, h.pool); now != nil && now.ID == h.id {
			h.show(now)
			if s.Leader.Leading {
				return false, nil
			}
			continue
		}
		end, err := h.end(ctx, base)
		if err != nil || end == nil {
			failed = err
			continue
		}
		h.result.Shard, h.result.Undone, h.result.Reason, h.result.Steps = end.Shard, end.Kind == shards.HandoffUndone, end.Reason, end.Steps
		if n := len(end.Steps); n > 0 {
			h.result.Seconds = end.Steps[n-1].MS / 1000
		}
		return true, nil
	}
	return false, failed
}

// end is the event in which it ended, nil if it has not.
func (h *handoffWatch) end(ctx context.Context, base string) (*shards.Event, error) {
	q := url.Values{"since": {strconv.FormatUint(h.id, 10)}, "pool": {h.pool}, "kind": {string(shards.HandoffDone), string(shards.HandoffUndone)}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	body, err := h.from.open(ctx, http.MethodGet, base+"/v1/events?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	e := new(shards.Event)
	if err := json.NewDecoder(body).Decode(e); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return e, nil
}

// show tells of a look: on a bar, or in lines.
func (h *handoffWatch) show(s *controlplane.HandoffStatus) {
	text := string(s.Step)
	if len(s.Waits) > 0 {
		text += ", waiting for " + strings.Join(s.Waits, ", ")
	}
	if s.Problem != "" {
		text += ": " + s.Problem
	}
	if len(s.Late) > 0 {
		h.result.Late = s.Late
	}
	var done, of int64
	if p := s.Progress; p != nil {
		h.result.Keys, h.result.Bytes, h.result.Again, h.result.Cold, h.result.Unlinked = p.Copied, p.Bytes, p.Again, p.Cold, p.Unlinked
		done, of = p.Copied, max(p.Keys, p.Copied)
		if s.Step == mesh.Copying {
			text += fmt.Sprintf(" %d of about %d keys, %.0f a second", done, of, p.KeysPerSecond)
			if p.Left > 0 {
				text += fmt.Sprintf(", %s left", p.Left.Round(time.Second))
			}
		}
	}
	if isTerminal(h.notes) {
		h.paint(text, done, of)
		return
	}
	if word := string(s.Step); word != h.told || time.Since(h.at) >= tellHandoffEvery {
		h.told, h.at = word, time.Now()
		fmt.Fprintln(h.notes, text)
	}
}

func (h *handoffWatch) paint(text string, done, of int64) {
	if h.bar == nil {
		h.bar = progress.NewWriter()
		h.bar.SetOutputWriter(h.notes)
		h.bar.SetUpdateFrequency(100 * time.Millisecond)
		h.bar.SetTrackerLength(30)
		h.bar.Style().Visibility.Value = false
		h.bar.AppendTracker(&h.shown)
		go h.bar.Render()
	}
	h.shown.UpdateMessage(text)
	h.shown.UpdateTotal(max(of, 1))
	h.shown.SetValue(min(done, max(of, 1)-1)) // a full bar would say that it has ended
}

func (h *handoffWatch) stop() {
	if h.bar != nil {
		h.bar.Stop()
		for h.bar.IsRenderInProgress() {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func printHandoff(w io.Writer, r handoffResult) {
	fmt.Fprintf(w, "%s (%s): %s, after %.1f s; %d keys (%s) were copied, %d of them left cold\n", r.Pool, r.Region, r.Reason, r.Seconds, r.Keys, size(r.Bytes), r.Cold)
	if len(r.Late) > 0 {
		fmt.Fprintf(w, "not waited for: %s\n", strings.Join(r.Late, ", "))
	}
}
