package lane

import (
	"strconv"
	"time"
)

// maxKept bounds the replies that wait for a replica.
const maxKept = 16 << 20

// patience is how long, in milliseconds, a reply waits for a replica.
func patience(deadline time.Time) string {
	const most, margin = 200 * time.Millisecond, 50 * time.Millisecond
	return strconv.FormatInt(max(1, min(most, time.Until(deadline)-margin).Milliseconds()), 10)
}

// answerDurable keeps the replies until a replica has the writes, or has not.
func (e *executor) answerDurable(up *upstream, b *batch, from, to int, journaled bool) error {
	e.kept, e.spans = e.kept[:0], e.spans[:0]
	for i := from; i < to; i++ {
		at := len(e.kept)
		if it := &b.items[i]; it.asks() {
			if err := e.results(up, it, &sink{b: &e.kept, limit: maxKept}); err != nil {
				return err
			}
		}
		e.spans = append(e.spans, span{at, len(e.kept)})
	}
	if err := e.noted(up); err != nil {
		return err
	}
	if err := e.entered(up, journaled); err != nil {
		return err
	}
	replicas, err := up.value(0)
	for i := from; i < to; i++ {
		it := &b.items[i]
		switch {
		case !it.asks():
		case it.waits && (err != nil || replicas == "0" || isError(replicas)):
			e.s.unreplicated.Add(1)
			it.reply = notReplicated
		default:
			it.reply = e.kept[e.spans[i-from].from:e.spans[i-from].to]
		}
		it.deliver()
	}
	if cap(e.kept) > maxBuffered {
		e.kept = nil
	}
	if err != nil {
		return err
	}
	return e.follow(up)
}

var notReplicated = failure("ERR no replica has the write within the time that durability: replica allows; it stands on the primary, and other regions will learn of it")
