package controlplane

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cachemesh/cachemesh/certs"
)

// TLS says how the listeners are protected. The zero value is plaintext. CA is the authority of clients: with it, sidecars
// need a certificate, and it must be theirs.
type TLS struct {
	certs.Files
	HTTPClients bool       // clients of the HTTP API need a certificate, too
	Identity    certs.Rule // how a certificate names its sidecar; "" is by SPIFFE id
}

// open returns nil for plaintext.
func (t TLS) open(log *slog.Logger) (*certs.Source, error) {
	switch {
	case t.Identity != "" && t.Identity != certs.SPIFFE && t.Identity != certs.DNS:
		return nil, fmt.Errorf("--identity %q: want %s or %s", t.Identity, certs.SPIFFE, certs.DNS)
	case t.HTTPClients && t.CA == "":
		return nil, errors.New("--http-client-auth needs --tls-client-ca: name the file with the authority of clients")
	case t.Cert == "" && t.Key == "" && t.CA == "":
		return nil, nil
	case t.Cert == "" || t.Key == "":
		return nil, errors.New("TLS needs both --tls-cert and --tls-key: name the certificate of this control plane and its key")
	}
	source, err := certs.Open(t.Files, log)
	if err == nil && t.CA == "" {
		log.Warn("whoever reaches --xds may connect as any sidecar: name the authority of their certificates with --tls-client-ca")
	}
	return source, err
}

func (c *ControlPlane) xdsCredentials() credentials.TransportCredentials {
	if c.certs == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(c.certs.Server(c.config.TLS.CA != ""))
}

// authorise decides who may speak for a node; nil without client certificates.
func (c *ControlPlane) authorise() func(*x509.Certificate, string, string) error {
	if c.config.TLS.CA == "" {
		return nil
	}
	rule := c.config.TLS.Identity
	if rule == "" {
		rule = certs.SPIFFE
	}
	return func(certificate *x509.Certificate, region, node string) error {
		err := rule.Check(certificate, region, node)
		if err != nil {
			c.log.Warn("refused a sidecar", "reason", err)
		}
		return err
	}
}
