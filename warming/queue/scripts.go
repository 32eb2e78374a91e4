package queue

import (
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node/lookups"
)

// The scripts have the keys of the package comment: the hash, the stream, the sample, and what was seen of it.

// clock is Redis's, in milliseconds.
const clock = `
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
`

// must makes a script fail if the queue is not there.
const must = `
local state = look('HGET', KEYS[1], 'state')
if not state then return redis.error_reply('GONE the queue is not there') end
`

// mine says whether an agent has a chunk.
const mine = `
local function mine(agent, id)
  local found = look('XPENDING', KEYS[2], 'agents', id, id, 1)
  return found[1] and (not agent or found[1][2] == agent)
end
`

// createScript takes how long the queue stays, its state, how many keys were named, how many a chunk has at most, and the kinds and contents of
// chunks. Until chunks are done, each is charged as a full one, so that many agents do not begin above the budget.
var createScript = redis.NewScript(lookups.Lua + clock + `
if look('EXISTS', KEYS[1]) then return {} end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'total', ARGV[3], 'listing', 0, 'usual', ARGV[4])
redis.call('XGROUP', 'CREATE', KEYS[2], 'agents', '0', 'MKSTREAM')
for i = 5, #ARGV, 2 do
  redis.call('XADD', KEYS[2], '*', ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'c' then redis.call('HINCRBY', KEYS[1], 'listing', 1) end
end
if #ARGV < 5 then redis.call('HSET', KEYS[1], 'state', 'done', 'ended', string.format('%.0f', now)) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return {}`)

// setScript takes a state. A run that is over stays so.
var setScript = redis.NewScript(lookups.Lua + clock + must + `
if state == ARGV[1] or (state ~= 'running' and state ~= 'paused') then return {} end
redis.call('HSET', KEYS[1], 'state', ARGV[1])
if ARGV[1] ~= 'running' and ARGV[1] ~= 'paused' then redis.call('HSET', KEYS[1], 'ended', string.format('%.0f', now)) end
return {}`)

// claimScript takes the agent, the milliseconds after which one is dead, and what may be spent a second: keys, bytes, and keys of the origin.
// What a chunk will cost is taken to be what those before did; doneScript corrects that.
var claimScript = redis.NewScript(lookups.Lua + clock + must + `
if state ~= 'running' then return {state} end
local h = look('HMGET', KEYS[1], 'paid:keys', 'paid:bytes', 'paid:origin', 'usual')
local keys, bytes, origin, usual = tonumber(h[1] or 0), tonumber(h[2] or 0), tonumber(h[3] or 0), tonumber(h[4])
local paid = math.max(keys, bytes, origin)
if paid > now then return {'wait', string.format('%.3f', math.min(paid - now, 1000))} end
local taken, entry = '0', nil
local left = look('XPENDING', KEYS[2], 'agents', 'IDLE', ARGV[2], '-', '+', 1)
if left[1] then
  taken, entry = '1', look('XCLAIM', KEYS[2], 'agents', ARGV[1], ARGV[2], left[1][1])[1]
else
  local new = redis.call('XREADGROUP', 'GROUP', 'agents', ARGV[1], 'COUNT', 1, 'STREAMS', KEYS[2], '>')
  entry = new and new[1] and new[1][2][1]
end
if not entry then return {'wait', '100'} end
redis.call('HSET', KEYS[1], 'paid:keys', string.format('%.3f', math.max(keys, now) + usual / ARGV[3] * 1000))
if tonumber(ARGV[5]) > 0 then redis.call('HSET', KEYS[1], 'paid:origin', string.format('%.3f', math.max(origin, now) + usual / ARGV[5] * 1000)) end
return {'chunk', entry[1], taken, tostring(usual), entry[2][1] .. entry[2][2]}`)

// keepScript takes the agent and chunks, and returns those that it has no more.
var keepScript = redis.NewScript(lookups.Lua + must + mine + `
local lost = {}
for i = 2, #ARGV do
  if mine(ARGV[1], ARGV[i]) then
    look('XCLAIM', KEYS[2], 'agents', ARGV[1], 0, ARGV[i], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost`)

// releaseScript takes the agent and a chunk.
var releaseScript = redis.NewScript(lookups.Lua + must + mine + `
if mine(ARGV[1], ARGV[2]) then look('XCLAIM', KEYS[2], 'agents', ARGV[1], 0, ARGV[2], 'IDLE', 86400000, 'JUSTID') end
return {}`)

// listedScript takes a chunk, an estimate of all keys or 0, how many cursors there are from which listing goes on, these, and packed keys.
var listedScript = redis.NewScript(lookups.Lua + must + mine + `
local field = 'end:' .. ARGV[1]
local before = look('HGET', KEYS[1], field)
if before then return cmsgpack.unpack(before) end
if not mine(nil, ARGV[1]) then return redis.error_reply('LOST the chunk was ended by another agent') end
local next, cursors = {'0'}, tonumber(ARGV[3])
if #ARGV > 3 + cursors then next[1] = '1' end
for i = 4, #ARGV do
  if i < 4 + cursors then
    next[#next + 1] = ARGV[i]
    redis.call('XADD', KEYS[2], '*', 'c', ARGV[i])
  else
    redis.call('XADD', KEYS[2], '*', 'k', ARGV[i])
  end
end
redis.call('HSET', KEYS[1], field, cmsgpack.pack(next))
redis.call('HINCRBY', KEYS[1], 'listing', cursors - 1)
if tonumber(ARGV[2]) > 0 then redis.call('HSET', KEYS[1], 'total', ARGV[2]) end
return next`)

// doneScript takes a chunk, what the budget was charged for it, the budget as claimScript does, bytes, how long the queue stays, the counts, and
// samples: a hash, a key, and what is known of it. It returns whether this agent is the first to say so, and the hash below which keys are still
// sampled. What was spent less than charged may be made up for within a quarter of a second.
var doneScript = redis.NewScript(lookups.Lua + clock + must + `
if (look('XACK', KEYS[2], 'agents', ARGV[1]) or 0) == 0 then return {'0', ''} end
redis.call('XDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], 'end:' .. ARGV[1])
local fields = {'` + strings.Join(countFields, "', '") + `'}
local n = 0
for i, field in ipairs(fields) do
  local count = tonumber(ARGV[7 + i])
  if count > 0 then redis.call('HINCRBY', KEYS[1], field, ARGV[7 + i]) end
  if field ~= 'bytes' then n = n + count end
end
local h = look('HMGET', KEYS[1], 'paid:keys', 'paid:bytes', 'paid:origin', 'usual')
local more = n - tonumber(ARGV[2])
local function pay(field, paid, cost)
  redis.call('HSET', KEYS[1], 'paid:' .. field, string.format('%.3f', math.max(tonumber(paid or 0), now - 250) + cost * 1000))
end
pay('keys', h[1], more / ARGV[3])
pay('bytes', h[2], ARGV[6] / ARGV[4])
if tonumber(ARGV[5]) > 0 then pay('origin', h[3], more / ARGV[5]) end
redis.call('HSET', KEYS[1], 'usual', string.format('%.1f', tonumber(h[4]) * 0.7 + n * 0.3))
for i = 8 + #fields, #ARGV, 3 do
  redis.call('ZADD', KEYS[3], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[4], ARGV[i + 1], ARGV[i + 2])
end
local below = ''
local over = (look('ZCARD', KEYS[3]) or 0) - ` + fmt.Sprint(maxSample) + `
if over >= 0 then
  if over > 0 then
    local dropped = redis.call('ZPOPMAX', KEYS[3], over)
    for i = 1, #dropped, 2 do redis.call('HDEL', KEYS[4], dropped[i]) end
  end
  below = look('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
end
redis.call('PEXPIRE', KEYS[3], ARGV[7])
redis.call('PEXPIRE', KEYS[4], ARGV[7])
if state ~= 'cancelled' and state ~= 'failed' and (look('XLEN', KEYS[2]) or 0) == 0 then
  redis.call('HSET', KEYS[1], 'state', 'done', 'ended', string.format('%.0f', now))
end
return {'1', below}`)

// progressScript returns the hash, with how many chunks there are.
var progressScript = redis.NewScript(lookups.Lua + `
local all = look('HGETALL', KEYS[1]) or {}
all[#all + 1], all[#all + 2] = 'chunks', tostring(look('XLEN', KEYS[2]) or 0)
return all`)

// tellScript takes a problem.
var tellScript = redis.NewScript(lookups.Lua + must + `
if (look('HGET', KEYS[1], 'problem') or '') ~= ARGV[1] then redis.call('HSET', KEYS[1], 'problem', ARGV[1]) end
return {}`)

// fullScript ends a run for want of room. What agents still work on is counted.
var fullScript = redis.NewScript(lookups.Lua + clock + must + `
if state ~= 'running' then return {} end
redis.call('HSET', KEYS[1], 'state', 'done', 'full', '1', 'ended', string.format('%.0f', now))
return {}`)
