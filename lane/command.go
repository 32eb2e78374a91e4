package lane

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/resp"
)

// effect is what a command does to its keys, as far as other regions are concerned.
type effect uint8

const (
	reads     effect = iota
	fills            // a write after which a key is there
	removes          // a removal of the key
	prunes           // a removal of a part of it
	expires          // a removal if the time to live is not positive
	expiresAt        // a removal if the moment is over
	stores           // SORT and GEORADIUS: only what follows STORE is written
	scripted         // nobody knows: counts as a removal
)

// place is where a command's keys are.
type place uint8

const (
	first   place = iota // the first argument
	second               // the second: OBJECT
	each                 // all arguments
	pairs                // every other argument
	counted              // as many as the second argument says, after it: EVAL
)

// spec is what a lane knows of a command.
type spec struct {
	arity  int // as Redis counts: with the name; -n is at least n
	place  place
	effect effect
}

// specs are the commands that may pass a lane: what Envoy sends the write way, and what it lets through within transactions.
// Anything else could change what the shared connection to the shard means (SUBSCRIBE), hold it up (BLPOP), or reach beyond the keys of an
// application (FLUSHALL).
var specs = func() map[string]spec {
	all := map[string]spec{}
	for _, g := range []struct {
		place  place
		effect effect
		names  string
	}{
		{first, reads, "get/2 strlen/2 getrange/4 substr/4 getbit/3 bitcount/-2 bitpos/-3 bitfield_ro/-2 hget/3 hgetall/2 hmget/-3 hexists/3 hkeys/2 hvals/2 " +
			"hlen/2 hstrlen/3 hrandfield/-2 hscan/-3 lindex/3 llen/2 lpos/-3 lrange/4 scard/2 sismember/3 smismember/-3 smembers/2 srandmember/-2 sscan/-3 " +
			"zcard/2 zcount/4 zlexcount/4 zmscore/-3 zrandmember/-2 zrange/-4 zrangebylex/-4 zrangebyscore/-4 zrank/-3 zrevrange/-4 zrevrangebylex/-4 " +
			"zrevrangebyscore/-4 zrevrank/-3 zscan/-3 zscore/3 geodist/-4 geohash/-2 geopos/-2 geosearch/-7 georadius_ro/-6 georadiusbymember_ro/-5 " +
			"xlen/2 xrange/-4 xrevrange/-4 xpending/-3 dump/2 pttl/2 ttl/2 type/2 sort_ro/-2 " +
			"bf.card/2 bf.exists/3 bf.info/-2 bf.mexists/-3 bf.scandump/3 hexpiretime/-5 hpexpiretime/-5 hpttl/-5 httl/-5"},
		{second, reads, "object/-3"},
		{each, reads, "mget/-2 exists/-2 touch/-2 pfcount/-2"},
		{first, fills, "set/-3 setex/4 psetex/4 setnx/3 setrange/4 setbit/4 append/3 incr/2 incrby/3 incrbyfloat/3 decr/2 decrby/3 bitfield/-2 getset/3 getex/-2 " +
			"hset/-4 hsetnx/4 hmset/-4 hincrby/4 hincrbyfloat/4 lpush/-3 lpushx/-3 rpush/-3 rpushx/-3 lpop/-2 rpop/-2 linsert/5 lset/4 ltrim/4 " +
			"sadd/-3 spop/-2 zadd/-4 zincrby/4 zpopmin/-2 zpopmax/-2 geoadd/-5 pfadd/-2 persist/2 restore/-4 xadd/-5 xtrim/-4 xack/-4 xclaim/-6 xautoclaim/-6 " +
			"bf.add/3 bf.insert/-4 bf.loadchunk/4 bf.madd/-3 bf.reserve/-4 hpersist/-5"},
		{pairs, fills, "mset/-3"},
		{first, removes, "getdel/2"},
		{first, prunes, "hdel/-3 lrem/4 srem/-3 zrem/-3 zremrangebylex/4 zremrangebyrank/4 zremrangebyscore/4 xdel/-3 hexpire/-6 hexpireat/-6 hpexpire/-6 hpexpireat/-6"},
		{each, removes, "del/-2 unlink/-2"},
		{first, expires, "expire/-3 pexpire/-3"},
		{first, expiresAt, "expireat/-3 pexpireat/-3"},
		{first, stores, "sort/-2 georadius/-6 georadiusbymember/-5"},
		{counted, scripted, "eval/-3 evalsha/-3"},
	} {
		for field := range strings.FieldsSeq(g.names) {
			name, count, _ := strings.Cut(field, "/")
			arity, err := strconv.Atoi(count)
			if err != nil {
				panic("no arity: " + field)
			}
			all[name] = spec{arity, g.place, g.effect}
		}
	}
	return all
}()

// command is one that a connection brought: its bytes and which of them are its name and arguments.
type command struct {
	raw  []byte
	args []resp.Span
}

func (c command) arg(i int) []byte { return c.args[i].Of(c.raw) }

// name is the command's in lower case, in a buffer of the caller's; nil for one that is longer than any that is known.
func (c command) name(into *[24]byte) []byte {
	given := c.arg(0)
	if len(given) > len(into) {
		return nil
	}
	for i, b := range given {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		into[i] = b
	}
	return into[:len(given)]
}

// fits says whether the count of arguments is one that the command takes. Redis aborts a whole transaction for one that does not.
func (s spec) fits(c command) bool {
	if s.place == pairs && len(c.args)%2 == 0 {
		return false
	}
	return len(c.args) == s.arity || s.arity < 0 && len(c.args) >= -s.arity
}

// opens says whether a command of the outcome begins a hold-off: the key is gone, and who misses it fills it again.
func (s spec) opens(outcome effect) bool {
	return outcome == removes && s.effect != scripted && s.effect != prunes
}

// keys are the command's, as indexes of arguments: from the first on, every step-th, before the end. ok is false if a script has not as
// many as it says.
func (s spec) keys(c command) (from, end, step int, ok bool) {
	switch s.place {
	case second:
		return 2, 3, 1, true
	case each:
		return 1, len(c.args), 1, true
	case pairs:
		return 1, len(c.args), 2, true
	case counted:
		n, err := strconv.Atoi(string(c.arg(2)))
		if err != nil || n < 0 || n > len(c.args)-3 {
			return 0, 0, 1, false
		}
		return 3, 3 + n, 1, true
	default:
		return 1, 2, 1, true
	}
}

// stored is the index of the key that SORT or GEORADIUS stores into, 0 if they only read.
func stored(c command) int {
	for i := len(c.args) - 2; i >= 2; i-- {
		if a := c.arg(i); bytes.EqualFold(a, []byte("store")) || bytes.EqualFold(a, []byte("storedist")) {
			return i + 1
		}
	}
	return 0
}

// late is how far a moment may lie ahead and count as over: what Redis finds when the command arrives there is later.
const late = time.Second

// outcome is what a command that fits does to its keys: one of reads, fills and removes. ahead is how far Redis's clock is ahead of
// this host's.
func (s spec) outcome(c command, ahead time.Duration) effect {
	switch s.effect {
	case scripted, prunes:
		return removes
	case stores:
		if stored(c) == 0 {
			return reads
		}
		return fills
	case expires, expiresAt:
		at, err := strconv.ParseInt(string(c.arg(2)), 10, 64)
		if err != nil {
			return fills // Redis refuses it, or knows better
		}
		if s.effect == expires {
			if at <= 0 {
				return removes
			}
			return fills
		}
		limit := time.Now().Add(ahead + late).UnixMilli()
		if len(c.arg(0)) == len("expireat") {
			limit /= 1000
		}
		if at <= limit {
			return removes
		}
		return fills
	default:
		return s.effect
	}
}
