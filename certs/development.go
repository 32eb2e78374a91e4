package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	developmentOnly = "cachemesh development only"
	developmentLife = 365 * 24 * time.Hour
	clockDifference = 5 * time.Minute
)

// Authority signs certificates for development and tests. It has no revocation and no protection for its key.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes an authority with a new key.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "cachemesh development CA", Organization: []string{developmentOnly}},
		NotBefore: time.Now().Add(-clockDifference), NotAfter: time.Now().Add(developmentLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{certificate, key}, nil
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return certificatePEM(a.certificate.Raw) }

// Leaf says what a certificate is for.
type Leaf struct {
	Name     string   // of the subject
	SPIFFE   []string // segments of its SPIFFE id; none is no id
	Hosts    []string // DNS names and IP addresses
	Server   bool     // for servers; a certificate is always for clients, too
	NotAfter time.Time
}

// Pair is a certificate with its key, as PEM.
type Pair struct{ Cert, Key []byte }

// Issue makes a certificate with a new key. NotAfter is that of the authority unless it is set.
func (a *Authority) Issue(l Leaf) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	if l.NotAfter.IsZero() {
		l.NotAfter = a.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: l.Name, Organization: []string{developmentOnly}},
		NotBefore: time.Now().Add(-clockDifference), NotAfter: l.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if l.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if len(l.SPIFFE) > 0 {
		id, err := spiffeid.FromSegments(trustDomain, l.SPIFFE...)
		if err != nil {
			return Pair{}, fmt.Errorf("%q: %w: use letters, digits, dots, dashes and underscores", l.SPIFFE, err)
		}
		template.URIs = []*url.URL{id.URL()}
	}
	for _, host := range l.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		return Pair{}, err
	}
	keyText, err := keyPEM(key)
	return Pair{Cert: certificatePEM(der), Key: keyText}, err
}

// Write puts the pair into base.pem and, for its owner alone, base-key.pem, each in one step.
func (p Pair) Write(base string) error {
	if err := renameio.WriteFile(base+"-key.pem", p.Key, 0o600); err != nil {
		return err
	}
	return renameio.WriteFile(base+".pem", p.Cert, 0o644)
}

// Development says whom to make certificates for.
type Development struct {
	Sidecars []Sidecar
	Hosts    []string // names and addresses of control planes and Redis nodes, beside localhost
	Force    bool     // replace what is there
}

// Sidecar is one by its region and name.
type Sidecar struct{ Region, Name string }

// Made is a file, or a pair of files, that WriteDevelopment made.
type Made struct{ File, For string }

// ErrThere says that a folder has certificates already.
var ErrThere = errors.New("there are certificates already")

// WriteDevelopment makes an authority and certificates for all that a mesh needs in dir. Keys are for their owner alone.
func WriteDevelopment(dir string, d Development) ([]Made, error) {
	if _, err := os.Stat(filepath.Join(dir, "ca.pem")); !errors.Is(err, fs.ErrNotExist) && !d.Force {
		return nil, fmt.Errorf("%s: %w: choose another folder, or replace them with --force", dir, errors.Join(ErrThere, err))
	}
	authority, err := NewAuthority()
	if err != nil {
		return nil, err
	}
	key, err := keyPEM(authority.key)
	if err != nil {
		return nil, err
	}
	type entry struct {
		base, use string
		leaf      Leaf
	}
	local := append([]string{"localhost", "127.0.0.1", "::1"}, d.Hosts...)
	entries := []entry{
		{"controlplane", "control planes: --tls-cert, --tls-key", Leaf{Name: "controlplane", SPIFFE: []string{"controlplane"}, Hosts: append([]string{"controlplane"}, local...), Server: true}},
		{"redis", "Redis nodes: tls-cert-file, tls-key-file", Leaf{Name: "redis", Hosts: append([]string{"redis"}, local...), Server: true}},
		{"operator", "operators' commands: --tls-cert, --tls-key", Leaf{Name: "operator", SPIFFE: []string{"operator"}}},
	}
	for _, s := range d.Sidecars {
		entries = append(entries, entry{filepath.Join(s.Region, s.Name), "sidecar " + s.Name + " in " + s.Region + ": --tls-cert, --tls-key",
			Leaf{Name: s.Name, SPIFFE: []string{s.Region, s.Name}, Hosts: []string{s.Name}}})
	}
	pairs := make([]Pair, len(entries))
	for i, e := range entries {
		if pairs[i], err = authority.Issue(e.leaf); err != nil {
			return nil, err
		}
	}
	entries = append([]entry{{base: "ca", use: "the authority that signed all of them: --tls-ca, --tls-client-ca, caFile"}}, entries...)
	pairs = append([]Pair{{Cert: authority.PEM(), Key: key}}, pairs...)
	var made []Made
	for i, e := range entries {
		base := filepath.Join(dir, e.base)
		if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
			return nil, err
		}
		if err := pairs[i].Write(base); err != nil {
			return nil, err
		}
		made = append(made, Made{e.base + ".pem, " + e.base + "-key.pem", e.use})
	}
	return made, nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		panic(err) // a system without random numbers cannot go on
	}
	return n
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
