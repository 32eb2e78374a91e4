package holdoff

import (
	"fmt"

	"github.com/cachemesh/cachemesh/node/lookups"
)

// Small as what they write is, it must not be lost on a node whose memory is full.
const allowOOM = "#!lua flags=allow-oom\n"

// widen holds all keys that begin with a prefix.
var widen = `
local function widen(till, prefix)
  if (look('ZCARD', prefixes) or 0) >= ` + fmt.Sprint(maxPrefixes) + ` then prefix = '' end
  redis.call('ZADD', prefixes, 'GT', till, prefix)
  redis.call('ZADD', held, 'GT', till + 0.25, prefixes)
end`

// beginScript takes prefixes and their milliseconds.
var beginScript = script(allowOOM + lookups.Lua + `
local held, prefixes = KEYS[1], KEYS[2]
local life = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if look('GET', KEYS[3]) == life then return 0 end
redis.call('SET', KEYS[3], life)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)` + widen + `
for i = 1, #ARGV, 2 do widen(now + ARGV[i + 1], ARGV[i]) end
return 1`)

// noteScript takes the state of the marks, the counts of marks and prefixes, the keys of the marks, their milliseconds, the prefixes with
// theirs, and written keys. A mark never ends sooner than the one before. It calls little while nothing is held.
var noteScript = script(allowOOM + lookups.Lua + `
local held, prefixes = KEYS[1], KEYS[2]
local state, marks, wide, at = ARGV[1] / 4, tonumber(ARGV[2]), tonumber(ARGV[3]), 4
-- EXISTS would be a hit or miss of the cache.
local function there(key) return redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '1') end
if marks + wide == 0 and not there(held) and not there(prefixes) then return 0 end
local now
local function clock()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end
local room
local function full()
  room = room or ` + fmt.Sprint(MaxMarks) + ` - (look('ZCARD', held) or 0)
  return room <= 0
end
` + widen + `
if marks > 0 then
  if full() or room < marks then
    redis.call('ZREMRANGEBYSCORE', held, '-inf', clock() - 60000)
    room = nil
    full()
  end
  local scores, beyond = {}, 0
  for from = at, at + marks - 1, 1000 do
    local to, add, n = math.min(from + 999, at + marks - 1), {}, 0
    for i = from, to do
      local key, ms = ARGV[i], ARGV[i + marks]
      if room >= marks or room > 0 or look('ZSCORE', held, key) then
        local score = scores[ms]
        if not score then
          score = string.format('%.2f', clock() + ms + state)
          scores[ms] = score
        end
        add[n + 1], add[n + 2], n = score, key, n + 2
        if room < marks then room = room - 1 end
      else
        beyond = math.max(beyond, clock() + ms)
      end
    end
    if n > 0 then redis.call('ZADD', held, 'GT', unpack(add)) end
  end
  if beyond > 0 then widen(beyond, '') end
  at, room = at + 2 * marks, nil
end
for i = 1, wide do
  widen(clock() + ARGV[at + 1], ARGV[at])
  at = at + 2
end
local suspect, wides = 0, {}
if at <= #ARGV and there(prefixes) then
  redis.call('ZREMRANGEBYSCORE', prefixes, '-inf', clock())
  wides = look('ZRANGE', prefixes, 0, -1, 'WITHSCORES') or {}
end
for from = at, #ARGV, 1000 do
  local to = math.min(from + 999, #ARGV)
  local scores = look('ZMSCORE', held, unpack(ARGV, from, to)) or {}
  for i = from, to do
    local key, score = ARGV[i], tonumber(scores[i - from + 1] or 0)
    local till = math.floor(score)
    for j = 1, #wides, 2 do
      local ends = tonumber(wides[j + 1])
      if ends > till and string.sub(key, 1, #wides[j]) == wides[j] then
        till = ends
        if score > 0 or not full() then
          local new = redis.call('ZADD', held, 'GT', till + 0.25, key)
          if room then room = room - new end
          score = till + 0.25
        end
      end
    end
    if till > 0 and till > clock() and there(key) then
      redis.call('PEXPIRE', key, math.min(till - now, ` + fmt.Sprint(Longest.Milliseconds()) + `), 'LT')
      if score == till then redis.call('ZADD', held, 'XX', till + 0.5, key) end
      suspect = suspect + 1
    end
  end
end
return suspect`)

// dueScript removes what is over, and returns how many that were, the time, and the key and the claim of each that other regions are to remove too.
// A key that is there though nobody noted that it was written counts as written. A claim lies in the past, so that any new mark takes its place.
// Of more marks than the bound, those that end first make room, and everything is held instead.
var dueScript = script(allowOOM + lookups.Lua + `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local clock = string.format('%.0f', now)
local size = look('ZCARD', KEYS[1])
if not size then return {'0', clock} end
` + fmt.Sprintf(`
if size > %d then
  local last = math.floor(look('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, size - %d - 1)
  redis.call('ZADD', KEYS[2], 'GT', last, '')
  redis.call('ZADD', KEYS[1], 'GT', last + 0.25, KEYS[2])
end
local due = look('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, %d) or {}
local again, ended = {'0', clock}, 0
local claim = string.format('%%.2f', now + 0.75)
for i = 1, #due, 2 do
  local key, score = due[i], tonumber(due[i + 1])
  local state = score %% 1 * 4
  -- Who claimed a key a moment ago is about to tell them.
  if state ~= 3 or score <= now - %d then
    ended = ended + 1
    local there = redis.call('UNLINK', key)
    if state >= 2 or state == 0 and there == 1 then
      redis.call('ZADD', KEYS[1], 'XX', claim, key)
      again[#again + 1] = key
      again[#again + 1] = claim
    else
      redis.call('ZREM', KEYS[1], key)
    end
  end
end
again[1] = tostring(ended)
return again`, MaxMarks, MaxMarks, DueAtOnce, lease.Milliseconds()))

// doneScript forgets keys unless they were marked since.
var doneScript = script(allowOOM + lookups.Lua + `
local done = 0
for i = 1, #ARGV, 2 do
  local score = look('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then done = done + redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return done`)
