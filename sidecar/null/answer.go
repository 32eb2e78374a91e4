package null

import "github.com/cachemesh/cachemesh/resp"

// Answer writes the answer to one command, of which there is at least the name.
func Answer(out *resp.Writer, args [][]byte) { reply(out, args) }
