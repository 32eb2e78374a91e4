package controlplane

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
)

// logIn makes a client connect as a pool says. Files are read at each connection, so that rotated ones count at once, and what
// they hold is not kept.
func logIn(o *redis.Options, a *mesh.RedisAccess) {
	if a == nil {
		return
	}
	if a.PasswordFile != "" || a.PasswordEnv != "" {
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			secret, err := password(a)
			return a.Username, secret, err
		}
	}
	if a.TLS != nil {
		o.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			files := certs.Files{CA: a.TLS.CAFile, Cert: a.TLS.CertFile, Key: a.TLS.KeyFile}
			source, err := certs.Open(files, nil)
			if err != nil {
				return nil, err
			}
			config := source.Client(a.TLS.ServerName)
			if a.TLS.ServerName == "" {
				config = source.ClientOfAny()
			}
			dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: o.DialTimeout}, Config: config}
			return dialer.DialContext(ctx, network, address)
		}
	}
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
