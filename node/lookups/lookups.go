// Package lookups tells applications' look-ups from those of cachemesh. Redis counts both as hits and misses of its keys, and only what
// applications ask for says how good a cache is.
//
// So whatever cachemesh looks for on a node it marks there: after a command that counts as a hit comes an ECHO, which Envoy answers itself and
// which no application's therefore is. Redis counts commands as it counts hits, by the same life and until the same CONFIG RESETSTAT, so nobody
// needs to remember or to report anything. Nothing is marked of XREAD, XREADGROUP and XINFO, which Envoy does not know either. What may not be there is not
// looked for, since that would be a miss: MEMORY USAGE, which counts as neither, says whether it is.
//
// It connects to nothing. Look-ups for the sake of one that is made with each new connection are not marked.
package lookups

import (
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/resp"
)

// Lua defines, for the scripts that begin with it, look: redis.call for a command that reads a key, which is a hit that is marked, or nil
// without the key. A user that may not ECHO can run it; its look-ups then count as applications'.
const Lua = `
local function look(command, key, ...)
  if redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '1') then
    redis.pcall('ECHO', '')
    return redis.call(command, key, ...)
  end
  return nil
end
`

// AppendMarks appends the command, as Redis reads it, that marks n look-ups of keys that are there. It has one reply.
func AppendMarks(b []byte, n int) []byte {
	return resp.AppendCommand(b, "EVAL", "for _ = 1, ARGV[1] do redis.pcall('ECHO', '') end", "0", strconv.Itoa(n))
}

// Hash is HGETALL of a key: its fields and values in turn, none without the key.
var Hash = redis.NewScript(Lua + `return look('HGETALL', KEYS[1]) or {}`)

// hitsOf are how many hits there are to a call of a command, for those that only cachemesh sends.
var hitsOf = map[string]int64{"echo": 1, "xinfo|stream": 1, "xread": 2, "xreadgroup": 2}

// Sections are those of INFO that Of reads.
var Sections = []string{"stats", "commandstats"}

// Of returns the applications' hits and misses by a node's INFO, as go-redis's InfoMap returns it. Of a look-up and its mark INFO may have seen
// one alone: a figure may be lower than one before by as much as there is on its way.
func Of(info map[string]map[string]string) (hits, misses int64) {
	hits, misses = number(info["Stats"]["keyspace_hits"]), number(info["Stats"]["keyspace_misses"])
	for command, each := range hitsOf {
		calls, _, _ := strings.Cut(strings.TrimPrefix(info["Commandstats"]["cmdstat_"+command], "calls="), ",")
		hits -= each * number(calls)
	}
	return max(0, hits), misses
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
