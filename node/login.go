package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
)

// Options are those of a client with one connection to a node of a pool, without retries. timeout bounds each dial, write and read.
func Options(address string, access *mesh.RedisAccess, timeout time.Duration) *redis.Options {
	o := &redis.Options{
		Addr: address, PoolSize: 1, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, ContextTimeoutEnabled: true,
		DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
		ReadBufferSize: 4096, WriteBufferSize: 4096,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address, access, timeout)
			if err != nil {
				return unconnected{err: err}, nil
			}
			return conn, nil
		},
	}
	if access != nil && (access.PasswordFile != "" || access.PasswordEnv != "") {
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			secret, err := password(access)
			return access.Username, secret, err
		}
	}
	return o
}

// unconnected is what a failed dial leaves. The Redis client is given it in place of the error, after which it would not dial
// again for a second, in which a node may have come back.
type unconnected struct {
	net.Conn
	err error
}

func (u unconnected) Read([]byte) (int, error)         { return 0, u.err }
func (u unconnected) Write([]byte) (int, error)        { return 0, u.err }
func (u unconnected) Close() error                     { return nil }
func (u unconnected) RemoteAddr() net.Addr             { return nil }
func (u unconnected) SetDeadline(time.Time) error      { return nil }
func (u unconnected) SetReadDeadline(time.Time) error  { return nil }
func (u unconnected) SetWriteDeadline(time.Time) error { return nil }

// dial reads files at each connection, so that rotated ones count at once, and what they hold is not kept.
func dial(ctx context.Context, network, address string, access *mesh.RedisAccess, timeout time.Duration) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: timeout}
	if access == nil || access.TLS == nil {
		return dialer.DialContext(ctx, network, address)
	}
	files := certs.Files{CA: access.TLS.CAFile, Cert: access.TLS.CertFile, Key: access.TLS.KeyFile}
	source, err := certs.Open(files, nil)
	if err != nil {
		return nil, err
	}
	config := source.Client(access.TLS.ServerName)
	if access.TLS.ServerName == "" {
		config = source.ClientOfAny()
	}
	secured := tls.Dialer{NetDialer: dialer, Config: config}
	return secured.DialContext(ctx, network, address)
}

// password reads the password as Envoy does: all that the file holds.
func password(a *mesh.RedisAccess) (string, error) {
	if a.PasswordEnv != "" {
		secret, ok := os.LookupEnv(a.PasswordEnv)
		if !ok {
			return "", fmt.Errorf("the environment variable %s of passwordEnv is not set: set it for control planes and sidecars", a.PasswordEnv)
		}
		return secret, nil
	}
	data, err := os.ReadFile(a.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("passwordFile: %w", err)
	}
	if strings.HasSuffix(string(data), "\n") {
		return "", fmt.Errorf("passwordFile %s ends in a line end, which would be part of the password: write it with printf %%s", a.PasswordFile)
	}
	return string(data), nil
}
