package sidecar

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
)

// Config says what one sidecar is and where it listens.
type Config struct {
	Name   string // node id, unique in its region
	Region string
	Zone   string
	// Dir holds the sidecar's state, sockets and logs; made if missing, one agent at a time.
	Dir string
	// Replace takes the place of an agent that runs in Dir, beside its Envoy, without an error to a client.
	Replace bool
	// ControlPlanes are host:port of the region's control planes. Any one of them is enough.
	ControlPlanes []string
	// TLS of the connections to them; the zero value is plaintext. Its files are read at each connection.
	TLS           certs.Files
	TLSServerName string // name in the control planes' certificate; "" is the host of each of ControlPlanes
	// Addresses are where applications reach Redis; socket paths are relative to Dir.
	Addresses envoy.Addresses
	Admin     string // host:port of Envoy's admin interface
	// Metrics is IP:port of the agent's HTTP server, which shows no secret, and takes events from this host only; beyond loopback with Insecure only.
	Metrics  string
	Insecure bool
	// Link is IP:port where agents of other regions connect; "" is nowhere, and then this agent follows no journals either. With a certificate in TLS,
	// they need one of the same authorities; without, it is plaintext, beyond loopback with Insecure only.
	Link string
	// EventsStream is the key of a Redis Stream to which the application adds events for warming; "" is none.
	EventsStream string
	Identity     certs.Rule // how a certificate names its sidecar; "" is by SPIFFE id
	Envoy        string     // path of the Envoy program
	// Concurrency is the number of Envoy's worker threads; 0 is 1.
	Concurrency int
	// DrainTimeout bounds how long a stopping sidecar waits for its clients; 0 is 5 s.
	DrainTimeout time.Duration
	Version      string // of this program, reported to the control plane
	Logger       *slog.Logger
}

// The name of the relay's socket in Config.Dir, and the longest path that a Unix socket can have.
const (
	xdsSocket     = "xds.sock"
	maxSocketPath = 107
)

// complete returns the configuration with its defaults and absolute paths, or what is wrong with it.
func (c Config) complete() (Config, error) {
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 5 * time.Second
	}
	if c.Identity == "" {
		c.Identity = certs.SPIFFE
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Dir == "" {
		return c, errors.New("dir is empty: name a directory for the sidecar's state and sockets")
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return c, fmt.Errorf("dir %q: %w", c.Dir, err)
	}
	if c.Envoy, err = filepath.Abs(c.Envoy); err != nil {
		return c, fmt.Errorf("envoy %q: %w", c.Envoy, err)
	}
	return c, c.validate()
}

func (c Config) validate() error {
	if c.Name == "" {
		return errors.New("name is empty: give the sidecar a name that is unique in its region")
	}
	if c.Region == "" {
		return errors.New("region is empty: name the region that this sidecar is in")
	}
	if c.Concurrency < 0 {
		return fmt.Errorf("concurrency is %d: give the number of Envoy's worker threads, at least 1", c.Concurrency)
	}
	if c.DrainTimeout < 0 {
		return fmt.Errorf("drain timeout is %v: give a positive duration", c.DrainTimeout)
	}
	if info, err := os.Stat(c.Envoy); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("envoy %q is not a program: give the path of Envoy's executable", c.Envoy)
	}
	if len(c.ControlPlanes) == 0 {
		return errors.New("no control plane is named: give host:port of at least one control plane")
	}
	for _, address := range c.ControlPlanes {
		if err := hostPort(address); err != nil {
			return fmt.Errorf("control planes: %w", err)
		}
	}
	if c.TLSServerName != "" && c.TLS == (certs.Files{}) {
		return errors.New("a TLS server name without TLS: name the authority of the control planes' certificates")
	}
	if err := c.Addresses.Validate(); err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	if err := loopback(c.Admin); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	if at, err := netip.ParseAddrPort(c.Metrics); err != nil || at.Port() == 0 {
		return fmt.Errorf("metrics: %q is not IP:port: use 127.0.0.1:PORT, or 0.0.0.0:PORT for a Prometheus on another host", c.Metrics)
	} else if !at.Addr().IsLoopback() && !c.Insecure {
		return fmt.Errorf("metrics: %q is reachable from other hosts without TLS: listen on 127.0.0.1, or add --insecure on a network that you trust", c.Metrics)
	}
	if err := c.validateLink(); err != nil {
		return err
	}
	if len(c.EventsStream) > 512 || strings.HasPrefix(c.EventsStream, mesh.ReservedPrefix) {
		return fmt.Errorf("events stream: %.100q cannot be its key: choose a shorter one that does not begin with %s", c.EventsStream, mesh.ReservedPrefix)
	}
	for _, path := range c.sockets() {
		if len(path) > maxSocketPath {
			return fmt.Errorf("the socket path %s has %d bytes and may have %d: use a shorter --dir", path, len(path), maxSocketPath)
		}
	}
	return nil
}

func (c Config) validateLink() error {
	if c.Identity != certs.SPIFFE && c.Identity != certs.DNS {
		return fmt.Errorf("identity %q: want %s or %s", c.Identity, certs.SPIFFE, certs.DNS)
	}
	if c.Link == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(c.Link)
	switch {
	case err != nil || at.Port() == 0 || at.Addr().IsUnspecified():
		return fmt.Errorf("link: %q is not an IP:port at which other regions reach this host: use such as 10.0.0.7:7946", c.Link)
	case c.TLS.Cert != "" && c.TLS.CA == "":
		return errors.New("link: a certificate without the authority of those of other regions: name it with --tls-ca")
	case !at.Addr().IsLoopback() && c.TLS.Cert == "" && !c.Insecure:
		return fmt.Errorf("link: %q is reachable from other hosts without TLS: add --tls-ca, --tls-cert and --tls-key, or --insecure on a network that you trust", c.Link)
	}
	return nil
}

// redisSockets are the absolute paths of the sockets that applications connect to.
func (c Config) redisSockets() []string {
	var paths []string
	for _, path := range []string{c.Addresses.Socket, c.Addresses.SocketRESP3} {
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(c.Dir, path)
		}
		paths = append(paths, path)
	}
	return paths
}

func (c Config) sockets() []string {
	return append(c.redisSockets(), filepath.Join(c.Dir, xdsSocket), filepath.Join(c.Dir, handoverSocket))
}

// redisListeners are all addresses where applications reach Redis.
func (c Config) redisListeners() []net.Addr {
	var all []net.Addr
	for _, address := range []string{c.Addresses.Redis, c.Addresses.RedisRESP3} {
		if at, err := netip.ParseAddrPort(address); err == nil {
			all = append(all, net.TCPAddrFromAddrPort(at))
		}
	}
	for _, path := range c.redisSockets() {
		all = append(all, &net.UnixAddr{Net: "unix", Name: path})
	}
	return all
}

func hostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" {
		return fmt.Errorf("%q is not a host and a port from 1 to 65535", address)
	}
	return nil
}

func loopback(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Port() == 0 {
		return fmt.Errorf("%q is not IP:port: use 127.0.0.1:PORT", address)
	}
	if !at.Addr().IsLoopback() {
		return fmt.Errorf("%q is not on loopback, and whoever reaches it needs no password: use 127.0.0.1:PORT", address)
	}
	return nil
}
