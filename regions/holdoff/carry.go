package holdoff

// Carried is a mark as it is kept, for another shard to keep too.
type Carried struct {
	Key   []byte
	Score string
}

// AppendScan appends the command that reads some marks of keys, from a cursor that is "0" at first: the reply is an array of the next cursor, "0" at
// the end, and of keys and scores in turn.
func AppendScan(b []byte, cursor string) []byte {
	b = appendBulk(appendBulk(appendBulk(append(b, "*5\r\n"...), "ZSCAN"), heldKey), cursor)
	return appendBulk(appendBulk(b, "COUNT"), "1000")
}

// AppendPrefixes appends the command that reads the marks of prefixes: the reply is an array of prefixes and scores in turn.
func AppendPrefixes(b []byte) []byte {
	b = appendBulk(appendBulk(append(b, "*5\r\n"...), "ZRANGE"), prefixesKey)
	return appendBulk(appendBulk(appendBulk(b, "0"), "-1"), "WITHSCORES")
}

// AppendCarry appends the command that keeps marks of keys. A mark never ends sooner than the one that there is.
func AppendCarry(b []byte, marks []Carried) []byte { return appendCarry(b, "keys", marks) }

// AppendCarryPrefixes appends the same for prefixes.
func AppendCarryPrefixes(b []byte, marks []Carried) []byte { return appendCarry(b, "prefixes", marks) }

func appendCarry(b []byte, of string, marks []Carried) []byte {
	b = carryScript.append(b, 2, 3+2*len(marks))
	b = appendBulk(appendBulk(appendBulk(b, heldKey), prefixesKey), of)
	for _, m := range marks {
		b = appendBulk(appendBulk(b, m.Score), m.Key)
	}
	return b
}

// carryScript keeps marks with their scores, of keys or of prefixes.
var carryScript = script(allowOOM + `
local into = ARGV[1] == 'keys' and KEYS[1] or KEYS[2]
for i = 2, #ARGV, 2 do
  redis.call('ZADD', into, 'GT', ARGV[i], ARGV[i + 1])
  if into == KEYS[2] then redis.call('ZADD', KEYS[1], 'GT', math.floor(ARGV[i]) + 0.25, KEYS[2]) end
end
return #ARGV`)
