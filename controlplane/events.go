package controlplane

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"

	"github.com/cachemesh/cachemesh/shards"
)

// What an event log holds at most. Past either, the oldest quarter goes.
const (
	maxEvents      = 10_000
	maxEventsBytes = 4 << 20
)

// eventLog keeps the region's events in the order in which this control plane learned of them, and in a file of JSON lines if it
// has one. The file is a copy for people: the newest events are in the state, too, so it need not survive a power cut.
type eventLog struct {
	path    string // "" keeps them in memory only
	log     *slog.Logger
	observe func(shards.Event) // is told of each event that is new here; set before the first

	mu      sync.Mutex
	first   int // position of events[0]: how many went before
	events  []shards.Event
	known   map[eventKey]bool
	damaged bool          // the file lacks something that is here, and is written anew with the next event
	more    chan struct{} // closed when there are more events
}

// eventKey tells events apart, also when a wiped state has begun to count from 1 again.
type eventKey struct {
	id uint64
	at int64
}

func keyOf(e shards.Event) eventKey { return eventKey{e.ID, e.Time.UnixNano()} }

// openEvents reads what was kept in the folder; "" keeps nothing. What cannot be read is left out.
func openEvents(folder string, log *slog.Logger) (*eventLog, error) {
	l := &eventLog{log: log, observe: func(shards.Event) {}, known: map[eventKey]bool{}, more: make(chan struct{})}
	if folder == "" {
		return l, nil
	}
	l.path = filepath.Join(folder, "events.jsonl")
	file, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--state: the events: %w", err)
	}
	defer file.Close()
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("--state: the events: %w", err)
		}
		var e shards.Event
		switch {
		case len(line) == 0:
		case err != nil || json.Unmarshal(line, &e) != nil || e.ID == 0:
			l.damaged = true // a control plane was killed while it wrote, or the disk was full
		default:
			l.take(e)
		}
		if err != nil {
			break
		}
	}
	if l.damaged {
		log.Warn("some of the events that were kept cannot be read and are left out", "file", l.path)
	}
	return l, nil
}

// take adds an event unless it is there.
func (l *eventLog) take(e shards.Event) bool {
	key := keyOf(e)
	if l.known[key] {
		return false
	}
	l.known[key] = true
	l.events = append(l.events, e)
	return true
}

// append keeps the events that are new here and tells followers of them.
func (l *eventLog) append(events []shards.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var fresh []shards.Event
	for _, e := range events {
		if l.take(e) {
			fresh = append(fresh, e)
			l.observe(e)
		}
	}
	if len(fresh) == 0 {
		return
	}
	for len(l.events) > maxEvents {
		l.forget()
	}
	if err := l.write(fresh); err != nil {
		if !l.damaged {
			l.log.Error("cannot keep the events over a restart", "error", err)
		}
		l.damaged = true
	}
	close(l.more)
	l.more = make(chan struct{})
}

// forget drops the oldest quarter; the file follows.
func (l *eventLog) forget() {
	n := (len(l.events) + 3) / 4
	for _, e := range l.events[:n] {
		delete(l.known, keyOf(e))
	}
	l.events = append([]shards.Event(nil), l.events[n:]...)
	l.first += n
	l.damaged = true
}

// write brings the file up to date.
func (l *eventLog) write(fresh []shards.Event) error {
	if l.path == "" {
		return nil
	}
	if !l.damaged {
		full, err := l.add(jsonLines(fresh))
		if !full {
			return err
		}
		l.forget()
	}
	lines := jsonLines(l.events)
	for len(lines) > maxEventsBytes {
		l.forget()
		lines = jsonLines(l.events)
	}
	if err := renameio.WriteFile(l.path, lines, 0o600); err != nil {
		return err
	}
	l.damaged = false
	return nil
}

// add appends lines to the file unless it is full then. It is opened each time, so that it may be removed, and another control plane
// that waits on the same folder may rewrite it.
func (l *eventLog) add(lines []byte) (full bool, err error) {
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return false, err
	}
	info, err := file.Stat()
	if err == nil && info.Size()+int64(len(lines)) > maxEventsBytes {
		return true, file.Close()
	}
	if err == nil {
		_, err = file.Write(lines)
	}
	return false, errors.Join(err, file.Close())
}

func jsonLines(events []shards.Event) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	for _, e := range events {
		encoder.Encode(e) // an Event has nothing that JSON cannot say
	}
	return out.Bytes()
}

// from returns the events from a position on, the position after them, and what is closed when there are more.
func (l *eventLog) from(position int) (events []shards.Event, next int, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	start := max(position-l.first, 0)
	if start < len(l.events) {
		events = append(events, l.events[start:]...)
	}
	return events, l.first + len(l.events), l.more
}

// after is the position behind the last event of that ID, or behind all smaller ones if it is not there.
func (l *eventLog) after(id uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	smaller := 0
	for i := len(l.events) - 1; i >= 0; i-- {
		switch e := l.events[i]; {
		case e.ID == id:
			return l.first + i + 1
		case e.ID < id && smaller == 0:
			smaller = i + 1
		}
	}
	return l.first + smaller
}
