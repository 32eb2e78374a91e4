package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

const (
	maxEvents      = 1000 // that wait
	eventsTogether = 100
	eventsTimeout  = 2 * time.Second
)

// Place is where something happened, in degrees.
type Place struct {
	Latitude  float64 `json:"latitude"`
	Longitude float64 `json:"longitude"`
}

// event says that a tweet was posted.
type event struct {
	Type   string      `json:"type"`
	ID     int64       `json:"id"`
	Author eventAuthor `json:"author"`
	Geo    *Place      `json:"geo,omitempty"`
	At     int64       `json:"at"` // milliseconds since 1970
}

type eventAuthor struct {
	ID        int64  `json:"id"`
	Home      string `json:"home"`
	Followers int    `json:"followers"`
}

// Events tells somebody over HTTP what happens. No request waits for it: what is too much is dropped and counted.
type Events struct {
	url    string
	client *http.Client
	log    *slog.Logger
	queue  chan event

	sent, lost atomic.Int64
}

// NewEvents makes events that go to a URL, a JSON array of some at a time, while Run runs.
func NewEvents(to *url.URL, log *slog.Logger) *Events {
	return &Events{url: to.String(), client: &http.Client{Timeout: eventsTimeout}, log: log, queue: make(chan event, maxEvents)}
}

func (e *Events) tell(v event) {
	if e == nil {
		return
	}
	select {
	case e.queue <- v:
	default:
		e.lost.Add(1)
	}
}

// Run sends events until ctx ends.
func (e *Events) Run(ctx context.Context) {
	var logged time.Time
	for {
		var batch []event
		select {
		case <-ctx.Done():
			return
		case v := <-e.queue:
			batch = append(batch, v)
		}
		for len(batch) < eventsTogether && len(e.queue) > 0 {
			batch = append(batch, <-e.queue)
		}
		if err := e.send(ctx, batch); err != nil {
			e.lost.Add(int64(len(batch)))
			if time.Since(logged) > 10*time.Second {
				e.log.Warn("events are lost", "error", err)
				logged = time.Now()
			}
			continue
		}
		e.sent.Add(int64(len(batch)))
	}
}

func (e *Events) send(ctx context.Context, batch []event) error {
	body, err := json.Marshal(batch)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s: %s", e.url, resp.Status, bytes.TrimSpace(answer))
	}
	return nil
}
