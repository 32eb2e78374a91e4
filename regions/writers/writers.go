// Package writers keeps, on a shard, who writes to its primary. What a primary has acknowledged and no replica has is lost with it; those who
// wrote it know, and each makes good its part on the next primary. One that does not come to do so is gone, too: then nobody knows what the
// shard lacks, and what other regions should have learned.
//
// Lanes and appliers join a primary before they write to it, and after they have made good what the one before may have kept to itself. Who
// follows the shard's journals looks who is missing. Since all is on the shard, it does not matter who else is lost meanwhile.
//
// On the shard's nodes, under a key that applications cannot reach:
//
//	cachemesh:writers  hash: NAME → "EPOCH NONCE", of the primary that it joined last
//
// A writer joins again every few seconds while it writes, so that one which is gone, and whose writes replicas have, can be told and forgotten.
package writers

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node/lookups"
)

// Again is how long who has joined may write without joining again. One that has not done so for Gone writes no more.
const (
	Again = 2 * time.Second
	Gone  = 5 * Again
)

const key = mesh.ReservedPrefix + "writers"

// Name is one for a life of an agent. What comes of it with a suffix may be the name of one of its writers.
func Name(agent string) string {
	return mesh.ReservedPrefix + url.QueryEscape(agent) + ":" + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// joinScript works on a node whose memory is full, too.
const joinScript = "#!lua flags=allow-oom\n" + `return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])`

// Join is the command, as arguments, that says that the writer has made good what it wrote before the primary's epoch.
func Join(name string, epoch uint64) []string {
	return []string{"EVAL", joinScript, "1", key, name, fmt.Sprintf("%d %d", epoch, time.Now().UnixNano())}
}

// Writer is one that has joined. It is another when it joins again.
type Writer struct {
	Name  string
	Epoch uint64
	value string
}

// List returns all that have joined, by name.
func List(ctx context.Context, c redis.Scripter) ([]Writer, error) {
	flat, err := lookups.Hash.Run(ctx, c, []string{key}).StringSlice()
	if err != nil {
		return nil, err
	}
	var all []Writer
	for i := 0; i+1 < len(flat); i += 2 {
		name, value := flat[i], flat[i+1]
		epoch, _, _ := strings.Cut(value, " ")
		n, err := strconv.ParseUint(epoch, 10, 64)
		if err != nil {
			n = 0 // nobody knows when: it is missing
		}
		all = append(all, Writer{name, n, value})
	}
	slices.SortFunc(all, func(a, b Writer) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

var forget = redis.NewScript("#!lua flags=allow-oom\n" + lookups.Lua + `for i = 1, #ARGV, 2 do
  if look('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end`)

// Forget forgets writers, but for those that have joined since they were listed.
func Forget(ctx context.Context, c redis.Scripter, all []Writer) error {
	var args []any
	for _, w := range all {
		args = append(args, w.Name, w.value)
	}
	if err := forget.Run(ctx, c, []string{key}, args...).Err(); !errors.Is(err, redis.Nil) {
		return err
	}
	return nil
}
