package null

import (
	"strings"

	"github.com/cachemesh/cachemesh/resp"
)

// version is the version of Redis whose answers are given.
const version = "7.0.0"

func echo(out *resp.Writer, args [][]byte) {
	if len(args) == 1 {
		out.Simple("PONG")
		return
	}
	out.Bulk(string(args[1]))
}

func selectDatabase(out *resp.Writer, args [][]byte) {
	if string(args[1]) != "0" {
		out.Error("ERR DB index is out of range")
		return
	}
	out.Simple("OK")
}

// hello changes the protocol and lets everybody in.
func hello(out *resp.Writer, args [][]byte) {
	proto := int64(2)
	if out.RESP3 {
		proto = 3
	}
	if len(args) > 1 {
		switch string(args[1]) {
		case "2":
			proto = 2
		case "3":
			proto = 3
		default:
			out.Error("NOPROTO unsupported protocol version")
			return
		}
	}
	out.RESP3 = proto == 3
	field := func(name, value string) {
		out.Bulk(name)
		out.Bulk(value)
	}
	out.Map(7)
	field("server", "redis")
	field("version", version)
	out.Bulk("proto")
	out.Integer(proto)
	out.Bulk("id")
	out.Integer(1)
	field("mode", "standalone")
	field("role", "master")
	out.Bulk("modules")
	out.Array(0)
}

// info is what clients look for when they connect.
func info(out *resp.Writer, args [][]byte) {
	sections := []struct{ name, text string }{
		{"Server", "redis_version:" + version + "\r\nredis_mode:standalone\r\ncachemesh_stand_in:null\r\n"},
		{"Persistence", "loading:0\r\n"},
		{"Replication", "role:master\r\nconnected_slaves:0\r\n"},
		{"Keyspace", ""},
	}
	asked := args[1:]
	all := len(asked) == 0 || has(asked, "all") || has(asked, "default") || has(asked, "everything")
	var texts []string
	for _, s := range sections {
		if all || has(asked, s.name) {
			texts = append(texts, "# "+s.name+"\r\n"+s.text)
		}
	}
	out.Text(strings.Join(texts, "\r\n"))
}

func object(out *resp.Writer, args [][]byte) {
	switch strings.ToLower(string(args[1])) {
	case "encoding", "freq", "idletime", "refcount":
		if len(args) != 3 {
			out.Error(wrongArguments("object|" + strings.ToLower(string(args[1]))))
			return
		}
		out.Null()
	default:
		out.Error("ERR unknown subcommand '" + string(args[1]) + "'. Try OBJECT HELP.")
	}
}
