package envoy

import (
	"path/filepath"
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

// With TLS there are files beside the bootstrap, in which Envoy finds the certificates and that they rotate.
func TestTheExampleForAnEnvoyAloneWithTLS(t *testing.T) {
	c := BootstrapConfig{
		ID: "envoy-alone", Region: "home", XDS: "controlplane.example:18000", Admin: "127.0.0.1:9901",
		Metadata: map[string]string{"redis": "127.0.0.1:6379", "redis_resp3": "127.0.0.1:6380"},
		TLS:      &mesh.TLSFiles{CAFile: "/etc/cachemesh/tls/ca.pem", CertFile: "/etc/cachemesh/tls/tls.crt", KeyFile: "/etc/cachemesh/tls/tls.key"},
		Secrets:  "/etc/cachemesh/envoy-alone-tls",
	}
	got, err := Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "../examples/envoy-alone-tls.json", got)
	files, err := BootstrapSecrets(c)
	if err != nil || len(files) != 2 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for path, data := range files {
		checkGolden(t, filepath.Join("../examples/envoy-alone-tls", filepath.Base(path)), data)
	}
}
