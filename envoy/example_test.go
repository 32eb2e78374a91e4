package envoy

import (
	"testing"

	"github.com/cachemesh/cachemesh/mesh"
)

// The bootstrap that the README gives to an Envoy without an agent is one that Bootstrap makes.
func TestTheExampleForAnEnvoyAlone(t *testing.T) {
	got, err := Bootstrap(BootstrapConfig{
		ID: "envoy-alone", Region: "home", XDS: "127.0.0.1:18000", Admin: "127.0.0.1:9901",
		Metadata: map[string]string{"redis": "127.0.0.1:6379", "redis_resp3": "127.0.0.1:6380"},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "../examples/envoy-alone.json", got)
}

// With TLS there are two files: the bootstrap, and what Envoy watches for rotated certificates.
func TestTheExampleForAnEnvoyAloneWithTLS(t *testing.T) {
	c := BootstrapConfig{
		ID: "envoy-alone", Region: "home", XDS: "controlplane.example:18000", Admin: "127.0.0.1:9901",
		Metadata: map[string]string{"redis": "127.0.0.1:6379", "redis_resp3": "127.0.0.1:6380"},
		TLS:      &mesh.TLSFiles{CAFile: "/etc/cachemesh/tls/ca.pem", CertFile: "/etc/cachemesh/tls/tls.crt", KeyFile: "/etc/cachemesh/tls/tls.key"},
		Secrets:  "/etc/cachemesh/envoy-alone-tls.secrets.json",
	}
	got, err := Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "../examples/envoy-alone-tls.json", got)
	if got, err = BootstrapSecrets(c); err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "../examples/envoy-alone-tls.secrets.json", got)
}
