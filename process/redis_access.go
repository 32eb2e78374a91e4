package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisTLS are the PEM files of a node's TLS. Its certificate is for a server and, as a replica's, for a client.
type RedisTLS struct {
	CA, Cert, Key string
	Clients       bool // need a certificate from CA
}

// args turn plaintext off and TLS on.
func (t *RedisTLS) args(port int) []string {
	if t == nil {
		return nil
	}
	clients := "no"
	if t.Clients {
		clients = "yes"
	}
	return []string{"--port", "0", "--tls-port", strconv.Itoa(port), "--tls-ca-cert-file", t.CA, "--tls-cert-file", t.Cert, "--tls-key-file", t.Key,
		"--tls-auth-clients", clients, "--tls-replication", "yes", "--tls-protocols", "TLSv1.3"}
}

func (t *RedisTLS) config() (*tls.Config, error) {
	authority, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}}, nil
}

// secrets is the part of the configuration that must not be seen among the arguments; nil if there is none.
func (r Redis) secrets() ([]byte, error) {
	if r.PasswordFile == "" {
		return nil, nil
	}
	password, err := os.ReadFile(r.PasswordFile)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "masterauth %q\n", password)
	if r.User == "" {
		fmt.Fprintf(&b, "requirepass %q\n", password)
		return b.Bytes(), nil
	}
	fmt.Fprintf(&b, "masteruser %s\nuser default off\nuser %s on #%x ~* &* +@all\n", r.User, r.User, sha256.Sum256(password))
	return b.Bytes(), nil
}

// Options are those of a client that may connect.
func (r Redis) Options() (*redis.Options, error) {
	o := &redis.Options{Addr: r.Address(), DialTimeout: time.Second, MaxRetries: -1, PoolSize: 1, DisableIdentity: true}
	if r.TLS != nil {
		config, err := r.TLS.config()
		if err != nil {
			return nil, err
		}
		o.TLSConfig = config
	}
	if r.PasswordFile != "" {
		password, err := os.ReadFile(r.PasswordFile)
		if err != nil {
			return nil, err
		}
		o.Username, o.Password = r.User, string(password)
	}
	return o, nil
}

// ReloadTLS makes a running server read its files anew: Redis does not watch them. Connections stay.
func (r Redis) ReloadTLS(ctx context.Context) error {
	options, err := r.Options()
	if err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer client.Close()
	return client.Do(ctx, "config", "set", "tls-ca-cert-file", r.TLS.CA, "tls-cert-file", r.TLS.Cert, "tls-key-file", r.TLS.Key).Err()
}
