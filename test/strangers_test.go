package test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

func TestStrangersAreRefused(t *testing.T) {
	s := newSecured(t)
	other := newAuthority(t)
	replaceFile(t, s.path("other-ca.pem"), other.PEM())
	with := func(change func(*mesh.TLSFiles)) *mesh.RedisAccess {
		a := s.fileAccess()
		change(a.TLS)
		return a
	}
	plain := s.fileAccess()
	plain.TLS = nil
	s.addSecuredPool(t, "good", s.fileAccess(), 1)
	s.addSecuredPool(t, "anyname", with(func(f *mesh.TLSFiles) { f.ServerName = "" }), 1)
	refused := map[string]*mesh.RedisAccess{
		"plaintext": plain,
		"authority": with(func(f *mesh.TLSFiles) { f.CAFile = s.path("other-ca.pem") }),
		"name":      with(func(f *mesh.TLSFiles) { f.ServerName = "somebody-else" }),
		"nobody":    with(func(f *mesh.TLSFiles) { f.CertFile, f.KeyFile = "", "" }),
	}
	for name, access := range refused {
		s.addSecuredPool(t, name, access, 1)
	}
	// An expired certificate of a client, and one of a server.
	s.issue(t, "redis-client-expired", certs.Leaf{Name: "redis-client", NotAfter: time.Now().Add(-time.Minute)})
	refused["client-expired"] = with(func(f *mesh.TLSFiles) {
		f.CertFile, f.KeyFile = s.path("redis-client-expired.pem"), s.path("redis-client-expired-key.pem")
	})
	s.addSecuredPool(t, "client-expired", refused["client-expired"], 1)
	refused["server-expired"] = s.fileAccess()
	s.addSecuredPool(t, "server-expired", refused["server-expired"], 1)
	expired := redisLeaf
	expired.NotAfter = time.Now().Add(-time.Minute)
	s.issue(t, "redis-expired", expired)
	old := s.redis[len(s.redis)-1]
	old.TLS = &process.RedisTLS{CA: old.TLS.CA, Cert: s.path("redis-expired.pem"), Key: s.path("redis-expired-key.pem"), Clients: true}
	valid := old
	valid.TLS = s.redis[0].TLS
	reloadAs(t, valid, old)
	s.write(t)

	s.issue(t, "here-0", sidecarLeaf("here-0"))
	c := s.startControlplane(t)
	side := s.newSecuredSidecar(t, "here-0", "here-0", c)
	side.start(t)
	c.waitSynced(t, side.name)

	t.Run("by Redis, or by Envoy", func(t *testing.T) {
		client := side.client(t)
		for _, name := range []string{"good", "anyname"} {
			if err := client.Set(t.Context(), name+":1", "v", 0).Err(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name := range refused {
			for i := range 5 {
				if err := client.Set(t.Context(), fmt.Sprint(name, ":", i), "v", 0).Err(); err == nil || errors.Is(err, redis.Nil) {
					t.Errorf("%s: a request was served", name)
				}
			}
		}
		eventually(t, 10*time.Second, func() error {
			for _, shard := range c.status(t).Shards {
				if _, bad := refused[shard.Pool]; bad == shard.Nodes[0].Up || bad && shard.Nodes[0].Error == "" {
					return fmt.Errorf("the probe of pool %s says %+v", shard.Pool, shard.Nodes[0])
				}
			}
			return nil
		})
		for i, shard := range s.shards() {
			if _, bad := refused[shard.Pool]; bad && shard.Pool != "server-expired" && keysOf(t, s.redis[i]) != 0 {
				t.Errorf("%s: keys came to the node", shard.Pool)
			}
		}
	})
	t.Run("by the control plane, or by the agent", func(t *testing.T) { s.refuseSidecars(t, c, other) })
	t.Run("an Envoy alone", func(t *testing.T) { s.envoysAlone(t, c) })
	for _, n := range c.status(t).Sidecars {
		if n.Name != "here-0" && n.Name != "alone" {
			t.Errorf("%s was taken in", n.Name)
		}
	}
}

// reloadAs makes a server that serves with the certificate of one serve with that of another.
func reloadAs(t *testing.T, as, with process.Redis) {
	t.Helper()
	options, err := as.Options()
	if err != nil {
		t.Fatal(err)
	}
	if err := newClient(t, options).Do(t.Context(), "config", "set", "tls-cert-file", with.TLS.Cert, "tls-key-file", with.TLS.Key).Err(); err != nil {
		t.Fatal(err)
	}
}

func (s *secured) refuseSidecars(t *testing.T, c *controlplane, other *certs.Authority) {
	expired := sidecarLeaf("expired")
	expired.NotAfter = time.Now().Add(-time.Minute)
	s.issue(t, "expired", expired)
	ours := s.authority
	s.authority = other
	s.issue(t, "foreign", sidecarLeaf("foreign"))
	s.authority = ours
	for _, stranger := range []struct {
		name, certificate, ca string
		says                  []string // the agent's log
	}{
		{"spoofed", "here-0", "ca.pem", []string{"PermissionDenied", `"spoofed\"`, "spiffe://cachemesh/here/here-0"}},
		{"expired", "expired", "ca.pem", []string{"expired certificate"}},
		{"foreign", "foreign", "ca.pem", []string{"unknown certificate authority"}},
		{"deceived", "here-0", "other-ca.pem", []string{"certificate signed by unknown authority"}},
		{"nameless", "", "ca.pem", []string{"certificate required"}},
		{"plain", "", "", []string{"no connection"}},
	} {
		side := s.newSidecar(t, stranger.name, c)
		if stranger.ca != "" {
			side.args = append(side.args, "--tls-ca", s.path(stranger.ca))
		}
		if stranger.certificate != "" {
			side.args = append(side.args, "--tls-cert", s.path(stranger.certificate+".pem"), "--tls-key", s.path(stranger.certificate+"-key.pem"))
		}
		p, err := process.Start(t.Context(), process.Spec{Name: stranger.name, Path: program(t), Args: side.args, Log: side.log})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() error {
			log, err := os.ReadFile(side.log)
			for _, want := range stranger.says {
				if err == nil && !strings.Contains(string(log), want) {
					err = fmt.Errorf("its log lacks %q: %s", want, log)
				}
			}
			return err
		})
		p.Stop(8 * time.Second)
	}
	for _, url := range []string{"http" + strings.TrimPrefix(c.url, "https") + "/v1/topology"} {
		if body, err := page(http.DefaultClient, url); err == nil && !strings.Contains(string(body), "HTTPS server") {
			t.Errorf("plaintext HTTP is answered: %s", body)
		}
	}
}

// envoysAlone start with the bootstrap that cachemesh makes, one as itself and one as another.
func (s *secured) envoysAlone(t *testing.T, c *controlplane) {
	s.issue(t, "alone", sidecarLeaf("alone"))
	path, err := process.Find("envoy")
	if err != nil {
		t.Fatal(err)
	}
	for name, served := range map[string]bool{"alone": true, "pretender": false} {
		at := freeAddresses(t, 3)
		config := envoy.BootstrapConfig{
			ID: name, Region: region, XDS: c.xds, Admin: at[0], Metadata: map[string]string{"redis": at[1], "redis_resp3": at[2]},
			TLS:     &mesh.TLSFiles{CAFile: s.path("ca.pem"), CertFile: s.path("alone.pem"), KeyFile: s.path("alone-key.pem")},
			Secrets: filepath.Join(s.dir, name),
		}
		bootstrap, err := envoy.Bootstrap(config)
		if err != nil {
			t.Fatal(err)
		}
		secrets, err := envoy.BootstrapSecrets(config)
		if err != nil {
			t.Fatal(err)
		}
		for path, content := range secrets {
			replaceFile(t, path, content)
		}
		file := filepath.Join(s.dir, name+".json")
		replaceFile(t, file, bootstrap)
		p, err := process.Start(t.Context(), process.Spec{Name: name, Path: path, Dir: s.dir, Log: filepath.Join(s.dir, name+".log"),
			Args: []string{"--config-path", file, "--disable-hot-restart", "--concurrency", "1", "--log-level", "info"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop(time.Second) })
		if !served {
			eventually(t, 10*time.Second, func() error {
				log, err := os.ReadFile(filepath.Join(s.dir, name+".log"))
				if err == nil && !(strings.Contains(string(log), `"pretender"`) && strings.Contains(string(log), "spiffe://cachemesh/here/alone")) {
					err = fmt.Errorf("its log says %s", tail(log))
				}
				return err
			})
			continue
		}
		c.waitSynced(t, name)
		client := newClient(t, &redis.Options{Addr: at[1], Protocol: 2})
		if err := client.Set(t.Context(), "good:alone", "v", 0).Err(); err != nil {
			t.Errorf("through an Envoy alone: %v", err)
		}
	}
}
