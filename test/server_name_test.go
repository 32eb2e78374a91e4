package test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
)

// In Kubernetes a command is sent on to the leader's pod, and a health check asks 127.0.0.1: no certificate names either.
func TestCommandsTakeTheNameOfACertificateFromAFlag(t *testing.T) {
	m := newMesh(t)
	m.addPool(t, mesh.PoolSpec{Name: "all", Routes: []mesh.Route{{Prefix: ""}}}, 1)
	m.write(t)
	authority := newAuthority(t)
	pair, err := authority.Issue(certs.Leaf{Name: "controlplane", Hosts: []string{"controlplane"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(m.dir, "ca.pem")
	replaceFile(t, ca, authority.PEM())
	if err := pair.Write(filepath.Join(m.dir, "controlplane")); err != nil {
		t.Fatal(err)
	}
	source, err := certs.Open(certs.Files{CA: ca}, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := freeAddresses(t, 2)
	c := &controlplane{xds: at[0], url: "https://" + at[1]}
	c.daemon = daemon{log: filepath.Join(m.dir, "named.log"), ready: c.url + "/readyz",
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: source.Client("controlplane")}},
		args: []string{"controlplane", "--config", m.file(), "--xds", at[0], "--http", at[1],
			"--tls-cert", filepath.Join(m.dir, "controlplane.pem"), "--tls-key", filepath.Join(m.dir, "controlplane-key.pem")}}
	c.start(t)

	for _, command := range [][]string{{"status", "--controlplane", c.url}, {"health", c.url + "/readyz"}} {
		cachemesh(t, append(command, "--tls-ca", ca, "--tls-server-name", "controlplane")...).want(t, 0)
		invocation{args: command, env: []string{"CACHEMESH_TLS_CA=" + ca, "CACHEMESH_TLS_SERVER_NAME=controlplane"}}.run(t).want(t, 0)
		for _, wrong := range [][]string{{"--tls-ca", ca}, {"--tls-ca", ca, "--tls-server-name", "another"}} {
			if r := cachemesh(t, append(command, wrong...)...).want(t, 1); !strings.Contains(r.stderr, "--tls-server-name") {
				t.Errorf("%s %q says %s, want the flag named", command[0], wrong, r.stderr)
			}
		}
		if r := cachemesh(t, append(command, "--tls-server-name", "controlplane")...).want(t, 1); !strings.Contains(r.stderr, "--tls-ca") {
			t.Errorf("%s without the authority says %s, want the flag named", command[0], r.stderr)
		}
	}
}
