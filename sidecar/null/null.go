// Package null answers Redis commands as an empty Redis that forgets what is written: reads miss, and writes succeed as if their
// key had not been there. It is what a shard has while none of its nodes is left.
//
// It keeps nothing, checks no password and runs no script. The commands that it knows are those that listeners let through,
// and those with which Envoy begins a connection. The agent calls it.
package null

import (
	"bufio"
	"errors"
	"io"
	"strings"

	"github.com/cachemesh/cachemesh/resp"
)

// limits bound what is read before it is forgotten.
var limits = resp.Limits{Arguments: 1 << 20, Bytes: 64 << 20}

// Serve answers the commands of a connection until that ends or breaks the protocol. It calls answered after each command on
// data.
func Serve(conn io.ReadWriter, answered func()) {
	in, out := bufio.NewReaderSize(conn, 16<<10), resp.NewWriter(conn)
	for {
		args, err := resp.ReadCommand(in, limits)
		if err != nil {
			var broken *resp.Error
			if errors.As(err, &broken) {
				out.Error("ERR " + err.Error())
				_ = out.Flush() // the connection is of no more use in any case
			}
			return
		}
		if reply(out, args) {
			answered()
		}
		if in.Buffered() > 0 {
			continue // more is pipelined
		}
		if out.Flush() != nil {
			return
		}
	}
}

// reply writes the answer to one command, and says whether that was a command on data.
func reply(out *resp.Writer, args [][]byte) bool {
	name := strings.ToLower(string(args[0]))
	c, exists := known[name]
	switch {
	case !exists:
		out.Error(unknownCommand(args))
	case c.arity > 0 && len(args) != c.arity || len(args) < -c.arity:
		out.Error(wrongArguments(name))
	default:
		c.answer(out, args)
	}
	return !c.connection
}

// command is how a command is answered where there is no data.
type command struct {
	arity      int // as Redis counts: with the name; -n is at least n
	answer     answer
	connection bool // is about the connection and not about data
}

type answer = func(out *resp.Writer, args [][]byte)

const (
	syntaxError  = "ERR syntax error"
	notAnInteger = "ERR value is not an integer or out of range"
	notAFloat    = "ERR value is not a valid float"
	noScripts    = "ERR no node of this shard is left, and what stands in for it runs no scripts"
)

func wrongArguments(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}

// unknownCommand is worded as Redis does it, which clients look for.
func unknownCommand(args [][]byte) string {
	const most = 128
	var b strings.Builder
	for _, a := range args[1:] {
		if b.Len() >= most {
			break
		}
		b.WriteString("'" + string(a[:min(len(a), most-b.Len())]) + "' ")
	}
	return "ERR unknown command '" + string(args[0][:min(len(args[0]), most)]) + "', with args beginning with: " + b.String()
}

// is says whether an argument is the word, which is in lower case.
func is(arg []byte, word string) bool { return strings.EqualFold(string(arg), word) }

// has says whether one of the arguments is the word.
func has(args [][]byte, word string) bool {
	for _, a := range args {
		if is(a, word) {
			return true
		}
	}
	return false
}

// distinct counts the different ones of every step-th argument from the first on.
func distinct(args [][]byte, step int) int64 {
	seen := map[string]bool{}
	for i := 0; i < len(args); i += step {
		seen[string(args[i])] = true
	}
	return int64(len(seen))
}
