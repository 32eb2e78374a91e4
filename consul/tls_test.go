package consul_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

func TestTLSToAConsulThatAsksForCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	authority, err := certs.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("ca.pem"), authority.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, leaf := range map[string]certs.Leaf{
		"server": {Name: "server", Hosts: []string{"server.east.consul"}, Server: true},
		"client": {Name: "client"},
	} {
		pair, err := authority.Issue(leaf)
		if err == nil {
			err = pair.Write(at(name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	s := servers(t, "east")[0]
	s.Args = []string{"-https-port=" + strconv.Itoa(ports[0]),
		`-hcl=tls { defaults { ca_file = "` + at("ca.pem") + `" cert_file = "` + at("server.pem") + `" key_file = "` + at("server-key.pem") + `" verify_incoming = true } }`}
	start(t, s)

	good := mesh.ConsulTLS{CAFile: at("ca.pem"), CertFile: at("client.pem"), KeyFile: at("client-key.pem"), ServerName: "server.east.consul"}
	spec := mesh.ConsulSpec{Address: "127.0.0.1:" + strconv.Itoa(ports[0]), TLS: &good}
	if err := client(t, spec).Register(t.Context(), node("a", "127.0.0.1:7001")); err != nil {
		t.Fatal(err)
	}
	if all, err := client(t, spec).List(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("list: %v, %v", all, err)
	}
	for want, change := range map[string]func(*mesh.ConsulTLS){
		"certificate required":   func(c *mesh.ConsulTLS) { c.CertFile, c.KeyFile = "", "" },
		"not other.example":      func(c *mesh.ConsulTLS) { c.ServerName = "other.example" },
		"failed to verify certi": func(c *mesh.ConsulTLS) { c.CAFile = "" },
	} {
		bad := good
		change(&bad)
		spec.TLS = &bad
		// With TLS 1.3 a client may notice that its connection is gone before it has read why. It is refused each time, and
		// asks again for the reason.
		var err error
		for range 50 {
			if _, err = client(t, spec).List(t.Context(), ""); err == nil || strings.Contains(err.Error(), want) {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
