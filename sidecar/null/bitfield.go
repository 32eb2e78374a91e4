package null

import (
	"math"
	"strconv"
	"strings"

	"github.com/cachemesh/cachemesh/resp"
)

const invalidBitfield = "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is."

// bitfield answers each operation as the only one: a key that is not there is all zeros.
func bitfield(out *resp.Writer, args [][]byte) {
	type result struct {
		n    int64
		none bool
	}
	var results []result
	overflow := "wrap"
	for rest := args[2:]; len(rest) > 0; {
		operation, takes := strings.ToLower(string(rest[0])), 4
		switch operation {
		case "overflow":
			takes = 2
		case "get":
			takes = 3
		case "set", "incrby":
		default:
			out.Error(syntaxError)
			return
		}
		if len(rest) < takes {
			out.Error(syntaxError)
			return
		}
		operands := rest[1:takes]
		rest = rest[takes:]
		if operation == "overflow" {
			overflow = strings.ToLower(string(operands[0]))
			if overflow != "wrap" && overflow != "sat" && overflow != "fail" {
				out.Error("ERR Invalid OVERFLOW type specified")
				return
			}
			continue
		}
		signed, bits, ok := bitfieldType(string(operands[0]))
		if !ok {
			out.Error(invalidBitfield)
			return
		}
		var r result
		if operation != "get" {
			by, err := strconv.ParseInt(string(operands[2]), 10, 64)
			if err != nil {
				out.Error(notAnInteger)
				return
			}
			fits := true
			if r.n, fits = fit(by, signed, bits, overflow); !fits {
				r = result{none: true}
			} else if operation == "set" {
				r.n = 0 // what was there before
			}
		}
		results = append(results, r)
	}
	out.Array(len(results))
	for _, r := range results {
		if r.none {
			out.Null()
		} else {
			out.Integer(r.n)
		}
	}
}

// bitfieldType reads i1 to i64 and u1 to u63.
func bitfieldType(s string) (signed bool, bits uint, ok bool) {
	if len(s) < 2 {
		return false, 0, false
	}
	signed = s[0] == 'i' || s[0] == 'I'
	n, err := strconv.ParseUint(s[1:], 10, 8)
	most := uint64(63)
	if signed {
		most = 64
	}
	return signed, uint(n), err == nil && (signed || s[0] == 'u' || s[0] == 'U') && n >= 1 && n <= most
}

// fit is what a number of so many bits becomes when n is added to zero; false if overflow says that it fails.
func fit(n int64, signed bool, bits uint, overflow string) (int64, bool) {
	least, most := int64(0), int64(math.MaxInt64)
	if signed {
		least, most = math.MinInt64>>(64-bits), math.MaxInt64>>(64-bits)
	} else {
		most >>= 63 - bits
	}
	switch {
	case n >= least && n <= most:
		return n, true
	case overflow == "fail":
		return 0, false
	case overflow == "sat" && n < least:
		return least, true
	case overflow == "sat":
		return most, true
	}
	n = n << (64 - bits) // wraps
	if signed {
		return n >> (64 - bits), true
	}
	return int64(uint64(n) >> (64 - bits)), true
}
