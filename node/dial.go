package node

import (
	"context"
	"net"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
)

// Dial connects to a node of a pool, with TLS if the pool has it, and does not log in.
func Dial(ctx context.Context, address string, access *mesh.RedisAccess, timeout time.Duration) (net.Conn, error) {
	return dial(ctx, "tcp", address, access, timeout)
}

// Credentials are what to log in with; no password means that there is no need to.
func Credentials(access *mesh.RedisAccess) (user, secret string, err error) {
	if access == nil || access.PasswordFile == "" && access.PasswordEnv == "" {
		return "", "", nil
	}
	secret, err = password(access)
	return access.Username, secret, err
}
