package workingset

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/resp"
	"github.com/cachemesh/cachemesh/warming/place"
)

// reads are the commands that read the key that is their first argument.
var reads = func() map[string]bool {
	all := map[string]bool{}
	for _, name := range strings.Fields(`get getrange substr strlen hget hgetall hmget hvals hkeys hlen lrange lindex llen smembers sismember scard srandmember
		zrange zrevrange zrangebyscore zrevrangebyscore zscore zcard zrank bitcount getbit geohash geopos geosearch`) {
		all[name] = true
	}
	return all
}()

// watch counts the keys that a shard's clients read for a moment.
func watch(ctx context.Context, s *place.Shard, seen map[string]int) error {
	pipe, err := node.OpenPipe(ctx, s.Address, s.Epoch, s.Access, timeout)
	if err != nil {
		return err
	}
	defer pipe.Close()
	if err := pipe.Send(resp.AppendCommand(nil, "MONITOR")); err != nil {
		return err
	}
	if _, err := pipe.Line(); err != nil {
		return err
	}
	if err := pipe.Until(time.Now().Add(watchFor)); err != nil {
		return err
	}
	for {
		line, err := pipe.Line()
		if err != nil {
			return nil // the moment is over, or a command was too long to be looked at
		}
		if key, ok := readKey(line); ok && (len(seen) < maxSeen || seen[key] > 0) {
			seen[key]++
		}
	}
}

// readKey is the key that a command reads, as MONITOR shows it:
//
//	+1339518083.107412 [0 127.0.0.1:60866] "get" "tweet:1"
func readKey(line []byte) (string, bool) {
	at := bytes.Index(line, []byte("] "))
	if at < 0 || bytes.HasSuffix(line[:at], []byte(" lua")) {
		return "", false
	}
	name, rest, ok := unquote(string(line[at+2:]))
	if !ok || !reads[strings.ToLower(name)] || !strings.HasPrefix(rest, " ") {
		return "", false
	}
	key, _, ok := unquote(rest[1:])
	return key, ok && len(key) <= maxKey && !strings.HasPrefix(key, mesh.ReservedPrefix)
}

// unquote cuts off a string as Redis quotes it, of which Go knows every escape.
func unquote(s string) (text, rest string, ok bool) {
	quoted, err := strconv.QuotedPrefix(s)
	if err != nil || quoted[0] != '"' {
		return "", "", false
	}
	text, err = strconv.Unquote(quoted)
	return text, s[len(quoted):], err == nil
}
