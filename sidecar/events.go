package sidecar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/cachemesh/cachemesh/reports"
)

const (
	// eventsPerSecond is what an agent passes on, and eventsBurst what may come at once. More is refused.
	eventsPerSecond = 1000
	eventsBurst     = 2000
	// maxKeptEvents is how many wait for control planes, at most keptFor: an older one is of no use any more.
	maxKeptEvents = 4096
	keptFor       = 30 * time.Second
	// maxEventsBody bounds a request's body, in bytes.
	maxEventsBody = 1 << 20
)

// events are what the application tells of, on their way to control planes. Of a flood it keeps what came first, and counts the rest.
type events struct {
	wake func()             // called when there are more
	tell func(event []byte) // called with each that the application told this agent, for other regions

	mu    sync.Mutex
	kept  []keptEvent
	next  uint64 // number of the next event
	told  uint64 // all before were told to a control plane
	room  float64
	since time.Time

	taken, dropped uint64
}

type keptEvent struct {
	text []byte
	at   time.Time
}

func newEvents() *events {
	return &events{wake: func() {}, tell: func([]byte) {}, room: eventsBurst, since: time.Now()}
}

// add takes events, as many as there is room for, the first ones first, and says how many. drop counts the others.
func (e *events) add(all [][]byte, drop bool) (taken int) {
	now := time.Now()
	e.mu.Lock()
	e.room = min(eventsBurst, e.room+now.Sub(e.since).Seconds()*eventsPerSecond)
	e.since = now
	e.age(now)
	for _, text := range all {
		if e.room < 1 {
			break
		}
		if len(e.kept) == maxKeptEvents {
			if e.first() >= e.told {
				break
			}
			e.kept = e.kept[1:]
		}
		e.kept = append(e.kept, keptEvent{text, now})
		e.next++
		e.room--
		taken++
	}
	e.taken += uint64(taken)
	if drop {
		e.dropped += uint64(len(all) - taken)
	}
	e.mu.Unlock()
	if taken > 0 {
		e.wake()
	}
	return taken
}

// first is the number of the oldest event that is kept. The caller holds the lock.
func (e *events) first() uint64 { return e.next - uint64(len(e.kept)) }

// age forgets events that are too old. The caller holds the lock.
func (e *events) age(now time.Time) {
	for len(e.kept) > 0 && now.Sub(e.kept[0].at) > keptFor {
		if e.first() >= e.told {
			e.dropped++
		}
		e.kept = e.kept[1:]
	}
}

// drop counts what was no event, or not wanted.
func (e *events) drop(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropped += uint64(n)
}

// from returns events from a number on, as many as a report may have, the number after them, and whether there are more.
func (e *events) from(number uint64) (all [][]byte, next uint64, more bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.age(time.Now())
	at := max(number, e.first())
	for at < e.next && len(all) < reports.MaxEvents {
		all = append(all, e.kept[at-e.first()].text)
		at++
	}
	return all, at, at < e.next
}

// sent says that a control plane was told of all before a number.
func (e *events) sent(number uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = max(e.told, number)
}

func (e *events) counts() (taken, dropped uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.taken, e.dropped
}

// post takes events from the application on this host: a JSON object, or an array of them.
func (e *events) post(w http.ResponseWriter, r *http.Request) {
	all, status, err := readEvents(w, r)
	if err != nil {
		e.drop(1)
		http.Error(w, err.Error(), status)
		return
	}
	taken := e.add(all, true)
	for _, event := range all[:taken] {
		e.tell(event)
	}
	w.Header().Set("Content-Type", "application/json")
	if taken < len(all) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}
	json.NewEncoder(w).Encode(map[string]int{"taken": taken, "dropped": len(all) - taken})
}

func readEvents(w http.ResponseWriter, r *http.Request) (all [][]byte, code int, err error) {
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().IsLoopback() {
		return nil, http.StatusForbidden, errors.New("events are taken from this host only: send them to 127.0.0.1")
	}
	// A page in a browser can send neither this type without being asked for permission, nor anything without an Origin.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" || r.Header.Get("Origin") != "" {
		return nil, http.StatusUnsupportedMediaType, errors.New("send Content-Type: application/json, and no Origin: web pages may not tell of events")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEventsBody))
	if err != nil {
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the events have more than %d bytes: send fewer at once", maxEventsBody)
	}
	all, err = parseEvents(body)
	return all, http.StatusBadRequest, err
}

// parseEvents cuts JSON into events, each one object on its own.
func parseEvents(body []byte) ([][]byte, error) {
	var list []json.RawMessage
	body = bytes.TrimSpace(body)
	if len(body) > 0 && body[0] == '[' {
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, fmt.Errorf("the events are not JSON: %w", err)
		}
	} else {
		list = []json.RawMessage{body}
	}
	all := make([][]byte, len(list))
	for i, text := range list {
		text = bytes.TrimSpace(text)
		switch {
		case len(text) == 0 || text[0] != '{' || !json.Valid(text):
			return nil, fmt.Errorf("event %d is not a JSON object", i)
		case len(text) > reports.MaxEvent:
			return nil, fmt.Errorf("event %d has %d bytes and may have %d", i, len(text), reports.MaxEvent)
		}
		all[i] = text
	}
	return all, nil
}
