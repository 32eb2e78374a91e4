package commands

// group is a set of commands about which the same is true.
type group struct {
	names string // separated by white space
	Command
}

// Remedies that several groups share.
const (
	oneTag    = "keys that share one {hash tag} and one route"
	onePerKey = "Run it for each primary that `cachemesh status` shows, on the node itself."
	byScript  = "EVAL with a script that calls it, over " + oneTag + "."
	// What has no key goes the way of the empty key.
	askedOfOne = "One shard is asked, of the pool that takes every other key (prefix \"\"): without such a route, or while that shard does not answer, it is an error."
	// A listener refuses a command whatever its key: Envoy's faults know no routes.
	passesBy   = "Refused where mesh.yaml has a route with coherence: invalidate, or transactions: lanes: other regions would not learn of it."
	scriptElse = "Where it is refused: EVAL with a script that calls it."
	toTheNode  = "Run it on the node itself; `cachemesh status` names the nodes of every shard."
)

var groups = []group{
	// One key, one shard.
	{"get strlen getrange substr getbit bitcount bitpos bitfield_ro " +
		"hget hgetall hmget hexists hkeys hvals hlen hstrlen hrandfield hscan " +
		"lindex llen lpos lrange " +
		"scard sismember smismember smembers srandmember sscan " +
		"zcard zcount zlexcount zmscore zrandmember zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex " +
		"zrevrangebyscore zrevrank zscan zscore " +
		"geodist geohash geopos geosearch georadius_ro georadiusbymember_ro " +
		"xlen xrange xrevrange dump pttl ttl type",
		Command{Verdict: VerdictWorks, Kind: KindRead}},
	{"set setex psetex setnx setrange setbit append incr incrby incrbyfloat decr decrby getdel bitfield " +
		"hset hsetnx hmset hdel hincrby hincrbyfloat " +
		"lpush lpushx rpush rpushx lpop rpop linsert lrem lset ltrim " +
		"sadd srem spop " +
		"zadd zincrby zrem zpopmin zpopmax zremrangebylex zremrangebyrank zremrangebyscore " +
		"geoadd pfadd expire expireat pexpire pexpireat persist restore",
		Command{Verdict: VerdictWorks, Kind: KindWrite}},
	{"getset getex xadd xdel xtrim",
		Command{Verdict: VerdictWorks, Kind: KindRead, EnvoyReads: true,
			Why:     "Changes the key, yet Envoy sends it the read way. " + passesBy,
			Instead: "Where it is refused: for GETSET, SET with its option GET; for GETEX, GET and PEXPIRE; else EVAL with a script that calls it."}},
	{"object",
		Command{Verdict: VerdictWorks, Kind: KindRead,
			Why: "Goes to the shard of the key that follows the subcommand; OBJECT HELP, which has none, is an error."}},

	// Several keys, split by Envoy.
	{"mget exists",
		Command{Verdict: VerdictWorks, Kind: KindSplit,
			Why: "Split by key, the parts go the read way: not one moment for all keys. " +
				"For a key whose shard does not answer, MGET has an error in its place and EXISTS fails as a whole."}},
	{"mset del unlink touch",
		Command{Verdict: VerdictWorks, Kind: KindSplit,
			Why: "Split by key, the parts go the write way: not atomic. " +
				"If the shards of some keys fail, the answer is \"finished with N error(s)\" and the other keys are done."}},

	// One key as a rule; more only with care.
	{"pfcount",
		Command{Verdict: VerdictCareful, Kind: KindRead,
			Why:     "Goes whole to the shard of the first key and counts keys of other shards as empty.",
			Instead: "One PFCOUNT a key, or " + oneTag + "."}},
	{"sort_ro",
		Command{Verdict: VerdictCareful, Kind: KindRead,
			Why:     "BY and GET patterns see only the keys of the sorted key's own shard.",
			Instead: "Without patterns it is right. With them: SORT_RO, then MGET."}},
	{"sort",
		Command{Verdict: VerdictCareful, Kind: KindWrite,
			Why: "BY and GET patterns see only the sorted key's own shard, and STORE puts the result there, " +
				"where its own key is not looked for. Envoy sends it the write way even without STORE.",
			Instead: "SORT_RO, then MGET for patterns, then RPUSH to store."}},
	{"georadius georadiusbymember",
		Command{Verdict: VerdictCareful, Kind: KindWrite,
			Why: "STORE and STOREDIST put the result on the searched key's shard, where its own key is not looked for. " +
				"Envoy sends it the write way even without them.",
			Instead: "GEOSEARCH, or the command's _RO form, then ZADD to store."}},
	{"eval evalsha",
		Command{Verdict: VerdictCareful, Kind: KindWrite,
			Why: "Goes whole to the shard of the first key, the write way. A script with several keys needs " + oneTag +
				": others it misses when reading and misplaces when writing, without an error. With no key, the first " +
				"argument decides; with neither, it is an error. Each shard knows only the scripts that were run on it, " +
				"and a promoted one may know none: after NOSCRIPT, run EVAL.",
			Instead: "A client's script helper that falls back from EVALSHA to EVAL: those of go-redis, rueidis and ioredis do, redis-py's does not."}},
	{"xpending",
		Command{Verdict: VerdictCareful, Kind: KindRead,
			Why:     "Works, but Envoy knows neither XGROUP nor XREADGROUP, so a consumer group lives outside the mesh.",
			Instead: "XADD and XRANGE; for groups, a client on the key's primary (`cachemesh where KEY`)."}},
	{"xack xclaim xautoclaim",
		Command{Verdict: VerdictCareful, Kind: KindRead, EnvoyReads: true,
			Why: "Works, but Envoy knows neither XGROUP nor XREADGROUP, so a consumer group lives outside the mesh. " +
				"Changes the group, yet Envoy sends it the read way. " + passesBy,
			Instead: "XADD and XRANGE; for groups, a client on the key's primary (`cachemesh where KEY`)."}},
	{"bf.card bf.exists bf.info bf.mexists bf.scandump",
		Command{Verdict: VerdictCareful, Kind: KindRead,
			Why: "Only if the shards' Redis has Bloom filters (a module, or Redis 8); it answers \"unknown command\" otherwise."}},
	{"bf.add bf.insert bf.loadchunk bf.madd bf.reserve",
		Command{Verdict: VerdictCareful, Kind: KindRead, EnvoyReads: true,
			Why: "Only if the shards' Redis has Bloom filters (a module, or Redis 8); it answers \"unknown command\" otherwise. " +
				"Changes the key, yet Envoy sends it the read way. " + passesBy,
			Instead: scriptElse}},
	{"hexpiretime hpexpiretime hpttl httl",
		Command{Verdict: VerdictCareful, Kind: KindRead,
			Why: "Only if the shards run Redis 7.4 or newer; an older one answers \"unknown command\"."}},
	{"hexpire hexpireat hpersist hpexpire hpexpireat",
		Command{Verdict: VerdictCareful, Kind: KindWrite,
			Why: "Only if the shards run Redis 7.4 or newer; an older one answers \"unknown command\"."}},
	{"cluster",
		Command{Verdict: VerdictCareful, Kind: KindOneShard,
			Why: "The shards are no Redis Cluster and say so: \"ERR This instance has cluster support disabled\". " +
				"Clients that probe for a cluster rightly take the mesh for one Redis. " + askedOfOne,
			Instead: "A client in its standalone mode (rueidis: ForceSingleClient: true, which asks nothing); `cachemesh status` for the shards."}},

	// Answered by Envoy.
	{"echo time quit",
		Command{Verdict: VerdictWorks, Kind: KindLocal}},
	{"ping",
		Command{Verdict: VerdictWorks, Kind: KindLocal,
			Why:     "Envoy answers PONG whatever the state of the shards, and even if a message was to be echoed.",
			Instead: "`cachemesh status` for the health of the shards."}},
	{"auth",
		Command{Verdict: VerdictCareful, Kind: KindLocal,
			Why:     "Checked against the listener, not against Redis. Without a password on the listener it is an error.",
			Instead: "Leave user and password out of the client's URL: the sidecar logs in to the shards."}},
	{"hello",
		Command{Verdict: VerdictCareful, Kind: KindLocal,
			Why: "A listener speaks one protocol version only. HELLO 3 on a RESP2 listener is answered with NOPROTO, " +
				"and so is everything before HELLO 3 on a RESP3 listener.",
			Instead: "The listener of your client's version; `cachemesh status` shows both."}},
	{"client",
		Command{Verdict: VerdictCareful, Kind: KindLocal,
			Why: "SETNAME and SETINFO answer OK and do nothing; Envoy answers other subcommands, TRACKING too, with an error. " +
				"Connections to the shards are shared, so a shard sees the sidecar as its client.",
			Instead: "For what a shard sees, CLIENT LIST on the node itself."}},

	// Refused: several keys, and Envoy looks only at the first.
	{"rename renamenx copy",
		Command{Verdict: VerdictRefused, Kind: KindWrite,
			Why:     "Goes whole to the first key's shard, so the value lands under the new name where that is not looked for.",
			Instead: "DUMP, RESTORE under the new name and DEL, or " + byScript}},
	{"smove rpoplpush lmove",
		Command{Verdict: VerdictRefused, Kind: KindWrite,
			Why:     "Goes whole to the source's shard, so the element lands in a destination where that is not looked for, and is lost.",
			Instead: byScript + " Where losing one is no harm: remove (SREM, LPOP, RPOP), then add (SADD, LPUSH, RPUSH)."}},
	{"sinter sunion sdiff",
		Command{Verdict: VerdictRefused, Kind: KindRead,
			Why:     "Goes whole to the first key's shard and takes keys of other shards for empty.",
			Instead: "SMEMBERS of each key, or SMISMEMBER, and the set operation in the client; or " + byScript}},
	{"sinterstore sunionstore sdiffstore zinterstore zunionstore zdiffstore zrangestore geosearchstore pfmerge",
		Command{Verdict: VerdictRefused, Kind: KindWrite,
			Why:     "Goes whole to the destination's shard and takes source keys of other shards for empty.",
			Instead: "Read the sources, write the result; or " + byScript}},
	{"zinter zunion zdiff",
		Command{Verdict: VerdictRefused, Kind: KindRead,
			Why:     "Envoy takes the number of keys for the key, so even keys with one hash tag are not found.",
			Instead: "ZRANGE WITHSCORES of each key and the operation in the client; or " + byScript}},
	{"bitop",
		Command{Verdict: VerdictRefused, Kind: KindWrite,
			Why:     "Envoy takes the operation's name for the key, so even keys with one hash tag are not found.",
			Instead: "GET, the operation in the client, SET; or " + byScript}},
	{"msetnx",
		Command{Verdict: VerdictRefused, Kind: KindWrite,
			Why:     "Goes whole to the first key's shard, so the other keys are checked and written where they are not looked for.",
			Instead: "SETNX for each key; or " + byScript}},

	// Refused: no key, so one shard would speak for all.
	{"keys scan",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why:     "Sees the keys of one shard and looks as if those were all.",
			Instead: "SCAN on each primary that `cachemesh status` shows, on the node itself. Within a key: HSCAN, SSCAN, ZSCAN."}},
	{"randomkey",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why:     "Picks from the keys of one shard.",
			Instead: onePerKey}},
	{"flushall flushdb",
		Command{Verdict: VerdictRefused, Kind: KindOneShard, EnvoyReads: true,
			Why:     "Empties one shard, of every application's keys, answers OK and leaves the other shards full.",
			Instead: "`cachemesh flush POOL`: every shard, every region. For some keys: UNLINK, or `cachemesh region invalidate`. On a node itself it would take the shard's journal, too."}},
	{"config",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why:     "Reads or changes the configuration of one shard, for all applications.",
			Instead: onePerKey}},
	{"script",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why: "SCRIPT LOAD reaches one shard, and EVALSHA then fails on the others; SCRIPT FLUSH takes the scripts of all applications.",
			Instead: "EVALSHA, and EVAL after NOSCRIPT: EVAL loads the script where its keys are. Clients' script helpers do so, " +
				"but for redis-py's register_script, which runs SCRIPT LOAD: call evalsha and eval there."}},
	{"role slowlog",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why:     "Tells of one shard and looks as if it were all.",
			Instead: "`cachemesh status`: keys, memory, operations, hit rate and role of every node; or the command on such a node itself."}},
	{"info",
		Command{Verdict: VerdictRefused, Kind: KindOneShard, OnRESP3: true,
			Why: "Tells of one shard, always the same, in a selection of fields, and looks as if that were all; redis_mode says cluster, which it is not. " +
				"The RESP3 listener lets it through, because ioredis asks it whenever it connects and would not connect without an answer. " + askedOfOne,
			Instead: "`cachemesh status`: keys, memory, operations, hit rate and role of every node; or INFO on such a node itself. " +
				"For ioredis on RESP2, enableReadyCheck: false; it then connects whatever the state of that shard."}},
	{"info.shard",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why:     "Envoy's INFO of the shard with a number, but it finds one shard only, number 0.",
			Instead: "`cachemesh status`, or INFO on the node itself."}},
	{"select",
		Command{Verdict: VerdictRefused, Kind: KindOneShard,
			Why:     "Clients share connections to the shards, so it would move other clients to the database too, on one shard.",
			Instead: "Database 0 (leave the number out of the client's URL) and a key prefix for each use."}},
	{"publish",
		Command{Verdict: VerdictRefused, Kind: KindRead, EnvoyReads: true,
			Why:     "Reaches the shard that the channel's name hashes to, where nobody can subscribe: Envoy does not know SUBSCRIBE.",
			Instead: "A stream (XADD, and XRANGE from the last id seen), or a Redis of its own for publish and subscribe."}},

	// Refused: transactions.
	{"multi exec discard",
		Command{Verdict: VerdictRefused, Kind: KindTransaction, WithTransactions: true,
			Why: "The whole transaction goes to its first key's shard: other keys are read and written where they are not looked for, and EXEC answers OK. " +
				"Envoy 1.40 crashes when a transaction's first key is on a route whose cluster has no host. " +
				"Let through where mesh.yaml says transactions: lanes: a transaction over several shards is then answered with CROSSSLOT.",
			Instead: "transactions: lanes in mesh.yaml; or EVAL with a script over one key or " + oneTag + "."}},
	{"watch unwatch",
		Command{Verdict: VerdictRefused, Kind: KindTransaction,
			Why:     "Watches on a connection that clients share and EXEC does not use, so a transaction succeeds in spite of a conflict.",
			Instead: "EVAL with a script that compares and sets, over one key or " + oneTag + "."}},

	// Unknown to Envoy.
	{"blpop brpop blmove brpoplpush blmpop bzpopmin bzpopmax bzmpop",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: waiting would hold up every client that shares the connection to the shard.",
			Instead: "LPOP, RPOP, ZPOPMIN or ZPOPMAX with pauses while they find nothing, or a client on the key's primary (`cachemesh where KEY`)."}},
	{"xread xreadgroup",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: it may wait, and its keys come last.",
			Instead: "XRANGE from the last id seen; for groups, a client on the key's primary (`cachemesh where KEY`)."}},
	{"xgroup xinfo xsetid",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "Run it on the key's primary: `cachemesh where KEY` names it."}},
	{"lmpop zmpop sintercard zintercard lcs",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "LPOP, RPOP, ZPOPMIN or ZPOPMAX with a count for one key; or " + byScript}},
	{"expiretime pexpiretime",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "TTL or PTTL, which count from now."}},
	{"hgetex hsetex hgetdel",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "HSET or HGET with HEXPIRE, HGET with HDEL; or EVAL with a script that calls it."}},
	{"eval_ro evalsha_ro",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "EVAL or EVALSHA, which go the write way."}},
	{"function fcall fcall_ro",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "EVAL, and EVALSHA with a fallback to it."}},
	{"subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe pubsub spublish",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: there is no publish and subscribe through the mesh.",
			Instead: "A stream (XADD, and XRANGE from the last id seen), or a Redis of its own for publish and subscribe."}},
	{"dbsize",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it.",
			Instead: "`cachemesh status`: the keys of every node."}},
	{"command",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it. redis-cli asks it when it starts and carries on without.",
			Instead: "`cachemesh explain COMMAND`, or COMMAND on a node itself."}},
	{"reset asking readonly readwrite",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: connections to the shards are shared and have no state of one client's own.",
			Instead: "A client in its standalone mode; a new connection in place of RESET."}},
	{"move swapdb",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it; the mesh uses database 0 only.",
			Instead: "A key prefix for each use."}},
	{"migrate restore-asking",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: which shard holds a key is the mesh's to decide.",
			Instead: "DUMP and RESTORE."}},
	{"wait waitaof",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: it would wait for writes of every client that shares the connection, and hold them up.",
			Instead: "WAIT on a connection to the key's primary (`cachemesh where KEY`) that made the write."}},
	{"acl bgrewriteaof bgsave debug failover lastsave latency lolwut memory module monitor pfdebug pfselftest psync replconf " +
		"replicaof save shutdown slaveof sync",
		Command{Verdict: VerdictUnknown, Kind: KindNone,
			Why:     "Envoy does not know it: it is about one node.",
			Instead: toTheNode}},
}
