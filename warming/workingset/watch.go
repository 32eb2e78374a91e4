package workingset

import (
	"bytes"
	"context"
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
	name, rest, ok := unquote(line[at+2:])
	if !ok || !reads[strings.ToLower(name)] || len(rest) == 0 || rest[0] != ' ' {
		return "", false
	}
	key, _, ok := unquote(rest[1:])
	return key, ok && len(key) <= maxKey && !strings.HasPrefix(key, mesh.ReservedPrefix)
}

// unquote reads a string as Redis quotes it.
func unquote(b []byte) (text string, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return "", nil, false
	}
	var out []byte
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return string(out), b[i+1:], true
		case c != '\\':
			out = append(out, c)
		case i+1 == len(b):
			return "", nil, false
		default:
			i++
			switch b[i] {
			case 'n':
				out = append(out, '\n')
			case 'r':
				out = append(out, '\r')
			case 't':
				out = append(out, '\t')
			case 'a':
				out = append(out, '\a')
			case 'b':
				out = append(out, '\b')
			case 'x':
				if i+2 >= len(b) {
					return "", nil, false
				}
				high, low := unhex(b[i+1]), unhex(b[i+2])
				if high < 0 || low < 0 {
					return "", nil, false
				}
				out = append(out, byte(high<<4|low))
				i += 2
			default:
				out = append(out, b[i])
			}
		}
	}
	return "", nil, false
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}
