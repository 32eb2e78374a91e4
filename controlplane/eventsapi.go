package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/shards"
)

// followerPatience is how long a follower that takes nothing is kept.
const followerPatience = 10 * time.Second

// eventQuery is which events a request asks for.
type eventQuery struct {
	since       uint64
	pool, shard string
	kinds       []shards.Kind // none is all
	limit       int           // the newest so many; 0 is all
	follow      bool
}

var eventParameters = []string{"since", "pool", "shard", "kind", "limit", "follow"}

func readEventQuery(v url.Values) (q eventQuery, err error) {
	for name := range v {
		if !slices.Contains(eventParameters, name) {
			return q, fmt.Errorf("there is no parameter %q: there are %s", name, strings.Join(eventParameters, ", "))
		}
	}
	q.pool, q.shard = v.Get("pool"), v.Get("shard")
	for _, k := range v["kind"] {
		if !slices.Contains(shards.Kinds, shards.Kind(k)) {
			return q, fmt.Errorf("kind %q: want one of %v", k, shards.Kinds)
		}
		q.kinds = append(q.kinds, shards.Kind(k))
	}
	if text := v.Get("since"); text != "" {
		if q.since, err = strconv.ParseUint(text, 10, 64); err != nil {
			return q, fmt.Errorf("since %q: want the id of an event", text)
		}
	}
	if text := v.Get("limit"); text != "" {
		if q.limit, err = strconv.Atoi(text); err != nil || q.limit < 1 {
			return q, fmt.Errorf("limit %q: want a number of events from 1", text)
		}
	}
	if text := v.Get("follow"); text != "" {
		if q.follow, err = strconv.ParseBool(text); err != nil {
			return q, fmt.Errorf("follow %q: want true or false", text)
		}
	}
	return q, nil
}

func (q eventQuery) takes(e shards.Event) bool {
	return (q.pool == "" || e.Pool == q.pool) && (q.shard == "" || e.Shard == q.shard) &&
		(len(q.kinds) == 0 || slices.Contains(q.kinds, e.Kind))
}

// ServeHTTP answers /v1/events: one event a line, the oldest first.
func (l *eventLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, err := readEventQuery(r.URL.Query())
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	position := 0
	if q.since > 0 {
		position = l.after(q.since)
	}
	connection := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	for first := true; ; first = false {
		events, next, more := l.from(position)
		position = next
		events = slices.DeleteFunc(events, func(e shards.Event) bool { return !q.takes(e) })
		if first && q.limit > 0 {
			events = events[max(0, len(events)-q.limit):]
		}
		connection.SetWriteDeadline(time.Now().Add(followerPatience))
		for _, e := range events {
			if encoder.Encode(e) != nil {
				return // the client went away
			}
		}
		if !q.follow || connection.Flush() != nil {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}
