package null

import (
	"strconv"
	"strings"

	"github.com/cachemesh/cachemesh/resp"
)

// known are the commands of both tables below, by name.
var known = func() map[string]command {
	all := map[string]command{}
	add := func(table map[string]answer, connection bool) {
		for names, answer := range table {
			for field := range strings.FieldsSeq(names) {
				name, count, _ := strings.Cut(field, "/")
				arity, err := strconv.Atoi(count)
				if err != nil || arity == 0 {
					panic("no arity: " + field)
				}
				all[name] = command{arity, answer, connection}
			}
		}
	}
	add(onData, false)
	add(onConnection, true)
	return all
}()

// onConnection are the commands about the connection. Whoever may open the socket is let in.
var onConnection = map[string]answer{
	"auth/-2 client/-2":  ok,
	"ping/-1 echo/2":     echo,
	"select/2":           selectDatabase,
	"hello/-1":           hello,
	"readonly/1 quit/-1": ok,
	"info/-1":            info,
	"cluster/-2":         failed("ERR This instance has cluster support disabled"),
}

// onData are the commands on keys: names with Redis's arity, and how all of them are answered.
var onData = map[string]answer{
	"get/2 getdel/2 getex/-2 getset/3 hget/3 lindex/3 zscore/3 zrank/3 zrevrank/3 geodist/-4 dump/2": missing,

	"strlen/2 getbit/3 bitcount/-2 hexists/3 hlen/2 hstrlen/3 llen/2 scard/2 sismember/3 zcard/2 zcount/4 zlexcount/4 xlen/2 pfcount/-2": integer(0),
	"exists/-2 touch/-2 del/-2 unlink/-2 hdel/-3 srem/-3 zrem/-3 xdel/-3 xack/-4 xtrim/-4 lrem/4 linsert/5 lpushx/-3 rpushx/-3":          integer(0),
	"zremrangebylex/4 zremrangebyrank/4 zremrangebyscore/4 expire/-3 expireat/-3 pexpire/-3 pexpireat/-3 persist/2":                      integer(0),
	"ttl/2 pttl/2":              integer(-2),
	"setnx/3 hsetnx/4 pfadd/-2": integer(1),

	"psetex/4 setex/4 mset/-3 hmset/-4 ltrim/4 restore/-4": ok,
	"getrange/4 substr/4": func(out *resp.Writer, _ [][]byte) { out.Bulk("") },
	"type/2":              func(out *resp.Writer, _ [][]byte) { out.Simple("none") },
	"lset/4":              failed("ERR no such key"),

	"hkeys/2 hvals/2 lrange/4 xrange/-4 xrevrange/-4 zpopmin/-2 zpopmax/-2 sort_ro/-2":             empty,
	"zrange/-4 zrangebylex/-4 zrangebyscore/-4 zrevrange/-4 zrevrangebylex/-4 zrevrangebyscore/-4": empty,
	"geosearch/-7 georadius_ro/-6 georadiusbymember_ro/-5":                                         empty,
	"hgetall/2":  func(out *resp.Writer, _ [][]byte) { out.Map(0) },
	"smembers/2": func(out *resp.Writer, _ [][]byte) { out.Set(0) },
	"sort/-2 georadius/-6 georadiusbymember/-5":   stored,
	"hscan/-3 sscan/-3 zscan/-3":                  scanned,
	"hrandfield/-2 srandmember/-2 zrandmember/-2": one((*resp.Writer).Array),
	"spop/-2":                        one((*resp.Writer).Set),
	"lpop/-2 rpop/-2":                popped,
	"lpos/-3":                        positions,
	"mget/-2":                        each(1, (*resp.Writer).Null),
	"hmget/-3 zmscore/-3 geohash/-2": each(2, (*resp.Writer).Null),
	"geopos/-2":                      each(2, (*resp.Writer).NullArray),
	"smismember/-3":                  each(2, func(out *resp.Writer) { out.Integer(0) }),

	"bitpos/-3":      bitPosition,
	"bitfield/-2":    bitfield,
	"bitfield_ro/-2": bitfield,

	"set/-3":                              set,
	"append/3":                            func(out *resp.Writer, args [][]byte) { out.Integer(int64(len(args[2]))) },
	"setrange/4":                          setRange,
	"setbit/4":                            integer(0),
	"incr/2":                              integer(1),
	"decr/2":                              integer(-1),
	"incrby/3 decrby/3":                   increment(2),
	"hincrby/4":                           increment(3),
	"incrbyfloat/3":                       incrementFloat(2, (*resp.Writer).Bulk),
	"hincrbyfloat/4":                      incrementFloat(3, (*resp.Writer).Bulk),
	"hset/-4":                             hashSet,
	"lpush/-3 rpush/-3":                   func(out *resp.Writer, args [][]byte) { out.Integer(int64(len(args) - 2)) },
	"sadd/-3":                             func(out *resp.Writer, args [][]byte) { out.Integer(distinct(args[2:], 1)) },
	"zadd/-4":                             sortedAdd,
	"zincrby/4":                           sortedIncrement,
	"geoadd/-5":                           geoAdd,
	"xadd/-5":                             streamAdd,
	"object/-2":                           object,
	"eval/-3":                             failed(noScripts),
	"evalsha/-3":                          failed("NOSCRIPT No matching script. Please use EVAL."),
	"xpending/-3 xclaim/-6 xautoclaim/-6": noGroup,

	// Redis knows the following in newer versions, or with a module. Whoever uses them has such a Redis.
	"httl/-5 hpttl/-5 hexpiretime/-5 hpexpiretime/-5 hpersist/-5": fieldsFrom(2),
	"hexpire/-6 hpexpire/-6 hexpireat/-6 hpexpireat/-6":           fieldsFrom(3),
	"bf.add/3":                     func(out *resp.Writer, _ [][]byte) { out.Bool(true) },
	"bf.exists/3":                  func(out *resp.Writer, _ [][]byte) { out.Bool(false) },
	"bf.madd/-3":                   each(2, func(out *resp.Writer) { out.Bool(true) }),
	"bf.mexists/-3":                each(2, func(out *resp.Writer) { out.Bool(false) }),
	"bf.insert/-4":                 bloomInsert,
	"bf.card/2":                    integer(0),
	"bf.reserve/-4 bf.loadchunk/4": ok,
	"bf.info/-2 bf.scandump/3":     failed("ERR not found"),
}

func ok(out *resp.Writer, _ [][]byte)      { out.Simple("OK") }
func missing(out *resp.Writer, _ [][]byte) { out.Null() }
func empty(out *resp.Writer, _ [][]byte)   { out.Array(0) }

func integer(n int64) answer {
	return func(out *resp.Writer, _ [][]byte) { out.Integer(n) }
}

func failed(text string) answer {
	return func(out *resp.Writer, _ [][]byte) { out.Error(text) }
}

// noGroup refuses a consumer group.
func noGroup(out *resp.Writer, args [][]byte) {
	clip := func(b []byte) string { return string(b[:min(len(b), 128)]) }
	out.Error("NOGROUP No such key '" + clip(args[1]) + "' or consumer group '" + clip(args[2]) + "'")
}

// each answers for every argument from the one on alike.
func each(from int, write func(*resp.Writer)) answer {
	return func(out *resp.Writer, args [][]byte) { repeat(out, len(args)-from, write) }
}

func repeat(out *resp.Writer, n int, write func(*resp.Writer)) {
	out.Array(n)
	for range n {
		write(out)
	}
}

// one answers where a count asks for several in place of one.
func one(several func(*resp.Writer, int)) answer {
	return func(out *resp.Writer, args [][]byte) {
		if len(args) > 2 {
			several(out, 0)
			return
		}
		out.Null()
	}
}

func popped(out *resp.Writer, args [][]byte) {
	if len(args) > 2 {
		out.NullArray()
		return
	}
	out.Null()
}

func positions(out *resp.Writer, args [][]byte) {
	if has(args[3:], "count") {
		out.Array(0)
		return
	}
	out.Null()
}

func scanned(out *resp.Writer, _ [][]byte) {
	out.Array(2)
	out.Bulk("0")
	out.Array(0)
}

// stored answers a search that may store what it finds.
func stored(out *resp.Writer, args [][]byte) {
	if has(args[2:], "store") || has(args[2:], "storedist") {
		out.Integer(0)
		return
	}
	out.Array(0)
}

func bitPosition(out *resp.Writer, args [][]byte) {
	switch string(args[2]) {
	case "0":
		out.Integer(0) // as if zeros went on for ever
	case "1":
		out.Integer(-1)
	default:
		out.Error("ERR The bit argument must be 1 or 0.")
	}
}
