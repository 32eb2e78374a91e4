package source

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/warming/place"
)

const (
	hourKeys    = 2000
	hourTimeout = 2 * time.Second
)

// hour lists what the region itself read most in an hour, of which another source has the values.
type hour struct {
	Source
	at     func() *place.Map
	pool   string
	key    string
	prefix []byte
}

// List goes through the pool's shards, the most read keys first. A cursor is a shard's name and how many of its keys were listed.
func (h *hour) List(ctx context.Context, cursor, _ string) (Page, error) {
	m := h.at()
	if m == nil {
		return Page{}, fmt.Errorf("the region's shards are not known yet")
	}
	if cursor == "" {
		var p Page
		for _, s := range m.Shards {
			if s.Pool == h.pool {
				p.Next = append(p.Next, s.Name+" 0")
			}
		}
		return p, nil
	}
	name, number, _ := strings.Cut(cursor, " ")
	from, err := strconv.Atoi(number)
	if err != nil || from < 0 {
		return Page{}, fmt.Errorf("%w: %q is no place in a working set", ErrKeys, cursor)
	}
	for _, s := range m.Shards {
		if s.Name == name {
			return h.list(ctx, s, from)
		}
	}
	return Page{}, nil // the shard is no more
}

func (h *hour) list(ctx context.Context, s *place.Shard, from int) (Page, error) {
	var p Page
	pipe, err := node.OpenPipe(ctx, s.Address, s.Epoch, s.Access, hourTimeout)
	if err != nil {
		return p, err
	}
	defer pipe.Close()
	if err := pipe.Send(resp.AppendCommand(nil, "ZRANGE", h.key, strconv.Itoa(from), strconv.Itoa(from+hourKeys-1), "REV")); err != nil {
		return p, err
	}
	v, err := pipe.Value()
	if err != nil {
		return p, err
	}
	all, _ := v.([]any)
	for _, k := range all {
		if key, ok := k.(string); ok && bytes.HasPrefix([]byte(key), h.prefix) {
			p.Named = append(p.Named, []byte(key))
		}
	}
	if len(all) == hourKeys {
		p.Next = []string{s.Name + " " + strconv.Itoa(from+hourKeys)}
	}
	return p, nil
}
