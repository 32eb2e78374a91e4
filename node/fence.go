package node

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/cachemesh/cachemesh/mesh"
)

// LoginKey holds, on each node, the least login with which lanes and appliers may use the shard, as a decimal number. They read it when they
// connect, and do not write if theirs is less.
const LoginKey = mesh.ReservedPrefix + "login"

const fenceTries = 20

const loginName = "cachemesh-writer-"

// LoginName is the name that a connection of a lane or an applier gives itself before anything else, so that Fence finds it.
func LoginName(login uint64) string { return loginName + strconv.FormatUint(login, 10) }

// raiseLogin keeps the key's greatest value, on a full node too.
const raiseLogin = "#!lua flags=allow-oom\n" + `
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return redis.status_reply('OK')`

// Fence keeps lanes and appliers with a lesser login from writing to this node, a primary, from when it returns on: it ends their connections,
// and they find that they may make no others. Done twice is done once.
func (c *Client) Fence(ctx context.Context, login uint64) error {
	if err := c.redis.Eval(ctx, raiseLogin, []string{LoginKey}, login).Err(); err != nil {
		return fmt.Errorf("fence Redis at %s: %w", c.address, err)
	}
	// Who connected before has a name, or reads the key now. One that is ended may be listed for a moment.
	for range fenceTries {
		list, err := c.redis.ClientList(ctx).Result()
		if err != nil {
			return fmt.Errorf("fence Redis at %s: %w", c.address, err)
		}
		late := older(list, login)
		if len(late) == 0 {
			return nil
		}
		pipe := c.redis.Pipeline()
		for _, id := range late {
			pipe.ClientKillByFilter(ctx, "ID", id)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("fence Redis at %s: %w", c.address, err)
		}
	}
	return fmt.Errorf("fence Redis at %s: it does not end the connections of earlier logins", c.address)
}

// older are the ids of clients in CLIENT LIST that have a lesser login.
func older(list string, login uint64) (ids []string) {
	for client := range Clients(list) {
		number, named := strings.CutPrefix(client["name"], loginName)
		if has, err := strconv.ParseUint(number, 10, 64); named && (err != nil || has < login) {
			ids = append(ids, client["id"])
		}
	}
	return ids
}

// Clients are those in what CLIENT LIST says, each with its fields.
func Clients(list string) iter.Seq[map[string]string] {
	return func(yield func(map[string]string) bool) {
		for line := range strings.Lines(list) {
			client := map[string]string{}
			for field := range strings.FieldsSeq(line) {
				name, value, _ := strings.Cut(field, "=")
				client[name] = value
			}
			if !yield(client) {
				return
			}
		}
	}
}

// Fenced says whether a connection with a login may not write to a node, by what LoginKey has there.
func Fenced(login uint64, least string) error {
	n, err := strconv.ParseUint(least, 10, 64)
	if err != nil || n <= login {
		return nil
	}
	return fmt.Errorf("the shard's keys have moved: it wants login %d, and this agent knows %d until a control plane tells it more", n, login)
}
