package certs

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Rule is how a certificate says which sidecar it belongs to.
type Rule string

// By SPIFFE, the certificate's URI is spiffe://cachemesh/REGION/NAME. By DNS, one of its DNS names is the sidecar's name, and
// the region is not checked.
const (
	SPIFFE Rule = "spiffe"
	DNS    Rule = "dns"
)

// trustDomain is that of every SPIFFE id here.
var trustDomain = spiffeid.RequireTrustDomainFromString("cachemesh")

// Check refuses a certificate that does not belong to the sidecar of that name in the region. Its errors name both.
func (r Rule) Check(certificate *x509.Certificate, region, name string) error {
	if certificate == nil {
		return fmt.Errorf("node %q of region %q has no client certificate: start its sidecar with --tls-cert and --tls-key", name, region)
	}
	if r == DNS {
		for _, dns := range certificate.DNSNames {
			if dns == name {
				return nil
			}
		}
		return fmt.Errorf("node %q came with a certificate for %s: its name must be one of those", name, quoted(certificate.DNSNames))
	}
	want, err := spiffeid.FromSegments(trustDomain, region, name)
	if err != nil {
		return fmt.Errorf("node %q of region %q cannot have a SPIFFE id (%w): choose another name, or --identity dns", name, region, err)
	}
	got, err := x509svid.IDFromCert(certificate)
	if err != nil {
		return fmt.Errorf("node %q of region %q came with the certificate of %q, which has no SPIFFE id (%w): it needs %s", name, region, certificate.Subject.CommonName, err, want)
	}
	if got != want {
		return fmt.Errorf("node %q of region %q came with the certificate of %s: it needs %s", name, region, got, want)
	}
	return nil
}

// CheckRegion refuses a certificate that is no sidecar's of the region. By DNS, any certificate will do.
func (r Rule) CheckRegion(certificate *x509.Certificate, region string) error {
	if r == DNS {
		return nil
	}
	id, err := x509svid.IDFromCert(certificate)
	if err != nil {
		return fmt.Errorf("an agent of region %q is meant, and the certificate of %q has no SPIFFE id: %w", region, certificate.Subject.CommonName, err)
	}
	if !OfSidecar(certificate) || !strings.HasPrefix(id.Path(), "/"+region+"/") {
		return fmt.Errorf("an agent of region %q is meant, and the certificate is of %s", region, id)
	}
	return nil
}

// OfSidecar says whether a certificate's SPIFFE id is a sidecar's.
func OfSidecar(certificate *x509.Certificate) bool {
	id, err := x509svid.IDFromCert(certificate)
	return err == nil && id.MemberOf(trustDomain) && strings.Count(id.Path(), "/") == 2
}

func quoted(names []string) string {
	if len(names) == 0 {
		return "no DNS name"
	}
	return fmt.Sprintf("%q", strings.Join(names, ", "))
}
