// Package certs reads certificates from files, takes them anew when the files rotate, decides whether a certificate
// may speak for a sidecar, and makes certificates for development.
//
// It opens no connection, never puts what a key file holds into an error or a log, and stores nothing but what
// WriteDevelopment is asked for. Control plane, sidecar, demo and commands call it.
package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files are paths of PEM files.
type Files struct {
	CA   string // who must have signed the other side's certificate; "" is the system's authorities for servers, and nobody for clients
	Cert string // the own certificate with its chain; "" is none
	Key  string // the private key of Cert
}

// Source has what files hold. It looks at every handshake whether they have changed; while they cannot be used, as in the
// middle of a rotation, what they held before stays.
type Source struct {
	files Files
	log   *slog.Logger

	mu      sync.Mutex
	content [3][]byte // as it was read last, of CA, Cert and Key
	last    material
}

// material is what the files hold, parsed.
type material struct {
	authorities  *x509.CertPool
	certificates []tls.Certificate
	leaf         *x509.Certificate // nil without a certificate
}

// Open reads the files. An error names the file and the remedy. A nil log is none.
func Open(files Files, log *slog.Logger) (*Source, error) {
	if (files.Cert == "") != (files.Key == "") {
		return nil, errors.New("a certificate and its key belong together: name both files, or neither")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Source{files: files, log: log}
	content, err := files.read()
	if err != nil {
		return nil, err
	}
	m, err := files.parse(content)
	if err != nil {
		return nil, err
	}
	s.content, s.last = content, m
	return s, nil
}

func (f Files) read() (content [3][]byte, err error) {
	for i, path := range []string{f.CA, f.Cert, f.Key} {
		if path == "" {
			continue
		}
		if content[i], err = os.ReadFile(path); err != nil {
			return content, fmt.Errorf("%w: put a PEM file there that this user may read", err)
		}
	}
	return content, nil
}

func (f Files) parse(content [3][]byte) (m material, err error) {
	if f.CA != "" {
		m.authorities = x509.NewCertPool()
		if !m.authorities.AppendCertsFromPEM(content[0]) {
			return m, fmt.Errorf("%s holds no certificate: put those of the authority there, as PEM", f.CA)
		}
	}
	if f.Cert != "" {
		pair, err := tls.X509KeyPair(content[1], content[2])
		if err != nil {
			return m, fmt.Errorf("%s and %s are no certificate with its key: %w: put both there, as PEM", f.Cert, f.Key, err)
		}
		m.certificates, m.leaf = []tls.Certificate{pair}, pair.Leaf
	}
	return m, nil
}

// now is what the files hold, or held when they could be used last.
func (s *Source) now() material {
	content, err := s.files.read()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.log.Warn("certificates are not read anew, those before stay in use", "error", err)
		return s.last
	}
	if equal(content, s.content) {
		return s.last
	}
	s.content = content
	m, err := s.files.parse(content)
	if err != nil {
		s.log.Warn("certificates are not taken anew, those before stay in use", "error", err)
		return s.last
	}
	s.last = m
	if m.leaf != nil {
		s.log.Info("certificates taken anew", "file", s.files.Cert, "expires", m.leaf.NotAfter)
	}
	return m
}

func equal(a, b [3][]byte) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// Expires is when the own certificate ends, zero without one. It is soon once a fifth of its life is left.
func (s *Source) Expires(now time.Time) (at time.Time, soon bool) {
	leaf := s.now().leaf
	if leaf == nil {
		return time.Time{}, false
	}
	return leaf.NotAfter, leaf.NotAfter.Sub(now) < leaf.NotAfter.Sub(leaf.NotBefore)/5
}

// Server is a server's configuration for gRPC and HTTP. With mutual, a client needs a certificate from the authorities.
func (s *Source) Server(mutual bool) *tls.Config {
	auth := tls.NoClientCert
	if mutual {
		auth = tls.RequireAndVerifyClientCert
	}
	base := tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: auth,
		// A resumed session would be checked against the authorities of its first handshake.
		SessionTicketsDisabled: true,
	}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.now()
		c := base.Clone()
		c.Certificates, c.ClientCAs = m.certificates, m.authorities
		return c, nil
	}
	return outer
}

// Client is a client's configuration with what the files hold now: make one for each connection. The server's certificate
// must hold the name; with "", that of the host to which the caller connects.
func (s *Source) Client(serverName string) *tls.Config {
	m := s.now()
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: m.authorities, Certificates: m.certificates, ServerName: serverName}
}

// ClientOfAny is like Client and takes a server's certificate of any name from the authorities.
func (s *Source) ClientOfAny() *tls.Config {
	m := s.now()
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: m.authorities, Certificates: m.certificates}
	c.InsecureSkipVerify = true // instead, VerifyConnection checks all but the name
	c.VerifyConnection = func(state tls.ConnectionState) error { return chained(state, m.authorities) }
	return c
}

// ClientOfPeer is like Client and takes a certificate from the authorities that check allows, also one that is for clients only.
func (s *Source) ClientOfPeer(check func(*x509.Certificate) error) *tls.Config {
	m := s.now()
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: m.authorities, Certificates: m.certificates}
	c.InsecureSkipVerify = true // instead, VerifyConnection checks what there is to check
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if err := chained(state, m.authorities, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth); err != nil {
			return err
		}
		return check(state.PeerCertificates[0])
	}
	return c
}

func chained(state tls.ConnectionState, authorities *x509.CertPool, usages ...x509.ExtKeyUsage) error {
	intermediates := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: intermediates, KeyUsages: usages})
	return err
}
