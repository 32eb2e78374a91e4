package holdoff

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/cachemesh/cachemesh/node/lookups"
)

// What is loaded ahead of need may be older than what removed a key a moment ago. Other than a refill, which the application wants now, it is not
// written at all while its key is held. A script looks and writes in one step. As long as nothing at all is held, which AppendWatch finds out,
// plain commands in a transaction cost a shard less than half.

// What became of an entry that was to be loaded.
const (
	LoadDone    = 'l'
	LoadThere   = 't' // there is a value already
	LoadHeld    = 'h'
	LoadMemory  = 'm' // the node has no room
	LoadRefused = 'e' // by Redis
)

// AppendLoadPrepare appends the command that a connection needs before AppendLoad; a string is its reply.
func AppendLoadPrepare(b []byte) []byte {
	return appendBulk(appendBulk(appendBulk(append(b, "*3\r\n"...), "SCRIPT"), "LOAD"), string(loadScript))
}

// AppendWatch appends the commands with which a connection looks whether anything is held, and watches that from then on: until its next EXEC, which
// does nothing if something has been held meanwhile. They have WatchReplies replies; nil as the last is that nothing is held.
func AppendWatch(b []byte) []byte { return append(b, watch...) }

// WatchReplies is how many replies AppendWatch's commands have.
const WatchReplies = 3

// Marks of prefixes are in held as well. MEMORY USAGE alone is no hit or miss.
var watch = func() []byte {
	b := appendBulk([]byte("*1\r\n"), "UNWATCH")
	b = appendBulk(appendBulk(append(b, "*2\r\n"...), "WATCH"), heldKey)
	b = appendBulk(appendBulk(appendBulk(append(b, "*5\r\n"...), "MEMORY"), "USAGE"), heldKey)
	return appendBulk(appendBulk(b, "SAMPLES"), "1")
}()

// AppendLoad appends the beginning of the command that loads so many entries, which AppendLoadEntry is to follow. Its reply is a string with
// a byte for each.
func AppendLoad(b []byte, entries int) []byte {
	b = append(strconv.AppendInt(append(b, '*'), int64(5+3*entries), 10), '\r', '\n')
	b = appendInt(appendBulk(appendBulk(b, "EVALSHA"), loadDigest), 2)
	return appendBulk(appendBulk(b, heldKey), prefixesKey)
}

// AppendLoadEntry appends a key, its time to live in milliseconds, of which 0 is for ever, and its value, which may be what DUMP said.
func AppendLoadEntry(b, key []byte, milliseconds int64, value []byte, dump bool) []byte {
	ttl := make([]byte, 0, 24)
	if dump {
		ttl = append(ttl, 'd')
	}
	return appendBulk(appendBulk(appendBulk(b, key), strconv.AppendInt(ttl, milliseconds, 10)), value)
}

var loadDigest = func() string {
	sum := sha1.Sum([]byte(loadScript))
	return hex.EncodeToString(sum[:])
}()

// loadScript takes keys, times to live and values in turn. A key's mark that is over, but still there, counts: the key is about to be removed once
// more.
var loadScript = script(lookups.Lua + fmt.Sprintf(`
local held, prefixes = KEYS[1], KEYS[2]
-- This alone is no hit or miss.
local some = redis.call('MEMORY', 'USAGE', held, 'SAMPLES', '1')
local wides = {}
if some then
  local time = redis.call('TIME')
  wides = look('ZRANGEBYSCORE', prefixes, '(' .. string.format('%%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), '+inf') or {}
end
local function suspect(key)
  if redis.call('ZADD', held, 'XX', 'INCR', 0, key) then return true end
  for _, prefix in ipairs(wides) do
    if string.sub(key, 1, #prefix) == prefix then return true end
  end
  return #key > %d
end
local pcall, find, out, n = redis.pcall, string.find, {}, 0
for i = 1, #ARGV, 3 do
  local key, ttl, reply = ARGV[i], ARGV[i + 1], nil
  n = n + 1
  if some and suspect(key) then
    out[n] = 'h'
  else
    if ttl == '0' then
      reply = pcall('SET', key, ARGV[i + 2], 'NX')
    elseif find(ttl, 'd', 1, true) then
      reply = pcall('RESTORE', key, string.sub(ttl, 2), ARGV[i + 2])
    else
      reply = pcall('SET', key, ARGV[i + 2], 'NX', 'PX', ttl)
    end
    if not reply then out[n] = 't'
    elseif reply.ok then out[n] = 'l'
    elseif find(reply.err, 'BUSYKEY', 1, true) then out[n] = 't'
    elseif find(reply.err, 'OOM', 1, true) then out[n] = 'm'
    else out[n] = 'e' end
  end
end
return table.concat(out)`, maxKey))
