package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// secured is a mesh with TLS and passwords everywhere.
type secured struct {
	*testMesh
	authority *certs.Authority
	secrets   map[string][]byte // what must not be seen, by what it is
	files     []string          // that hold them, and may
	redis     []process.Redis
}

// passwordVariable holds the password of every pool that has its password from the environment.
const passwordVariable = "CACHEMESH_TEST_REDIS_PASSWORD"

func newSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{testMesh: newMesh(t), secrets: map[string][]byte{}}
	s.authority = newAuthority(t)
	s.plant(t, "password of the file", s.path("password"), []byte("open-sesame-2f9c81d07ab4"))
	s.secrets["password of the environment"] = []byte("hunter-77c0aa19e5d2b836")
	t.Setenv(passwordVariable, string(s.secrets["password of the environment"]))
	s.trust(t, s.authority)
	t.Setenv("CACHEMESH_TLS_CA", s.path("ca.pem"))
	s.issue(t, "controlplane", certs.Leaf{Name: "controlplane", Hosts: []string{"127.0.0.1", "controlplane"}, Server: true})
	s.issue(t, "redis", redisLeaf)
	s.issue(t, "redis-client", certs.Leaf{Name: "redis-client"})
	return s
}

var redisLeaf = certs.Leaf{Name: "redis", Hosts: []string{"127.0.0.1", "redis"}, Server: true}

func newAuthority(t *testing.T) *certs.Authority {
	t.Helper()
	a, err := certs.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// path is a file of the mesh's certificates.
func (s *secured) path(name string) string { return filepath.Join(s.dir, "certs", name) }

// plant writes a secret in one step, as Kubernetes does.
func (s *secured) plant(t *testing.T, what, path string, secret []byte) {
	t.Helper()
	s.secrets[what], s.files = secret, append(s.files, path)
	replaceFile(t, path, secret)
}

func replaceFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// trust makes the authorities those whom all programs believe.
func (s *secured) trust(t *testing.T, authorities ...*certs.Authority) {
	t.Helper()
	var all []byte
	for _, a := range authorities {
		all = append(all, a.PEM()...)
	}
	replaceFile(t, s.path("ca.pem"), all)
}

// issue makes the certificate NAME.pem by the authority of now, and remembers its key as a secret.
func (s *secured) issue(t *testing.T, name string, l certs.Leaf) {
	t.Helper()
	pair, err := s.authority.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path(""), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := pair.Write(s.path(name)); err != nil {
		t.Fatal(err)
	}
	s.secrets["key of "+name+" "+strconv.Itoa(len(s.secrets))] = pair.Key
	s.files = append(s.files, s.path(name+"-key.pem"))
}

func (s *secured) tlsFiles() *mesh.TLSFiles {
	return &mesh.TLSFiles{CAFile: s.path("ca.pem"), CertFile: s.path("redis-client.pem"), KeyFile: s.path("redis-client-key.pem"), ServerName: "redis"}
}

// addPool adds a pool with so many shards, each a Redis with TLS and a password.
func (s *secured) addSecuredPool(t *testing.T, name string, access *mesh.RedisAccess, shards int) {
	t.Helper()
	s.spec.Pools = append(s.spec.Pools, mesh.PoolSpec{Name: name, Redis: access, Routes: []mesh.Route{{Prefix: name + ":"}}})
	for i := range shards {
		node := s.startSecuredNode(t, access)
		s.spec.Regions[0].Shards = append(s.spec.Regions[0].Shards, mesh.ShardSpec{Pool: name, Name: fmt.Sprintf("%s-%d", name, i), Nodes: []string{node.Address()}})
	}
}

func (s *secured) startSecuredNode(t *testing.T, access *mesh.RedisAccess) process.Redis {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	node := process.Redis{Port: freePorts(t, 1)[0], Dir: s.dir, User: access.Username, PasswordFile: s.path("password"),
		TLS: &process.RedisTLS{CA: s.path("ca.pem"), Cert: s.path("redis.pem"), Key: s.path("redis-key.pem"), Clients: true}}
	if access.PasswordEnv != "" {
		node.PasswordFile = s.path("password-for-environment")
		replaceFile(t, node.PasswordFile, s.secrets["password of the environment"])
		s.files = append(s.files, node.PasswordFile)
	}
	p, err := node.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(time.Second) })
	s.nodes[node.Address()] = p
	s.redis = append(s.redis, node)
	return node
}

// keysOf reads how many keys a node has, from the node itself.
func keysOf(t *testing.T, node process.Redis) int64 {
	t.Helper()
	options, err := node.Options()
	if err != nil {
		t.Fatal(err)
	}
	n, err := newClient(t, options).DBSize(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *secured) fileAccess() *mesh.RedisAccess {
	return &mesh.RedisAccess{Username: "app", PasswordFile: s.path("password"), TLS: s.tlsFiles()}
}

func (s *secured) startControlplane(t *testing.T) *controlplane {
	t.Helper()
	c := s.newControlplane(t, "--tls-cert", s.path("controlplane.pem"), "--tls-key", s.path("controlplane-key.pem"), "--tls-client-ca", s.path("ca.pem"))
	c.url = "https" + strings.TrimPrefix(c.url, "http")
	c.ready, c.client = c.url+"/readyz", s.client(t)
	c.start(t)
	return c
}

// client trusts what ca.pem holds at each connection.
func (s *secured) client(t *testing.T) *http.Client {
	t.Helper()
	source, err := certs.Open(certs.Files{CA: s.path("ca.pem")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: source.Client(""), DisableKeepAlives: true}}
}

// newSecuredSidecar is a sidecar with the certificate of that base name.
func (s *secured) newSecuredSidecar(t *testing.T, name, certificate string, c *controlplane) *sidecar {
	t.Helper()
	side := s.newSidecar(t, name, c)
	side.args = append(side.args, "--tls-ca", s.path("ca.pem"), "--tls-cert", s.path(certificate+".pem"), "--tls-key", s.path(certificate+"-key.pem"))
	return side
}

func sidecarLeaf(name string) certs.Leaf {
	return certs.Leaf{Name: name, SPIFFE: []string{region, name}, Hosts: []string{name}}
}

func TestSecretsStaySecretAndCertificatesRotateUnderLoad(t *testing.T) {
	s := newSecured(t)
	s.addSecuredPool(t, "file", s.fileAccess(), 2)
	s.addSecuredPool(t, "env", &mesh.RedisAccess{PasswordEnv: passwordVariable, TLS: s.tlsFiles()}, 1)
	s.write(t)
	s.issue(t, "here-0", sidecarLeaf("here-0"))
	c := s.startControlplane(t)
	side := s.newSecuredSidecar(t, "here-0", "here-0", c)
	side.start(t)
	version := c.waitSynced(t, side.name)
	load2 := startLoad(t, side.over()["RESP2"], slices.Concat(someKeys("file:", 50), someKeys("env:", 50)))
	load3 := startLoad(t, side.over()["RESP3 Unix socket"], slices.Concat(someKeys("file:", 50), someKeys("env:", 50)))
	load2.waitMore(t, 200)
	eventually(t, 10*time.Second, func() error {
		for _, shard := range c.status(t).Shards {
			for _, n := range shard.Nodes {
				if !n.Up {
					return fmt.Errorf("the probe of %s says %s", n.Address, n.Error)
				}
			}
		}
		return nil
	})
	connected := c.status(t).Sidecars[0].ConnectedAt
	if at := metric(t, side, `cachemesh_sidecar_certificate_expiry_timestamp_seconds{region="here",sidecar="here-0"}`); at < float64(time.Now().Unix()) {
		t.Errorf("the sidecar's certificate ends at %v, by its metric", at)
	}

	t.Run("mistakes name no secret", func(t *testing.T) { s.mistakes(t, c) })
	t.Run("rotation", func(t *testing.T) {
		s.rotate(t, side, func() {
			load2.waitMore(t, 300)
			load3.waitMore(t, 300)
			c.status(t) // a handshake
		})
		now := c.status(t).Sidecars
		if len(now) != 1 || !now[0].ConnectedAt.Equal(connected) || now[0].State != "SYNCED" || now[0].Version != version {
			t.Errorf("the sidecars are %+v, want here-0 on its first stream", now)
		}
	})
	load2.finish(t)
	load3.finish(t)
	s.afterRotation(t, c, side)
	t.Run("secrets", func(t *testing.T) { s.search(t, c, side) })
}

// mistakes writes secrets where they do not belong, and leaves everything as it was.
func (s *secured) mistakes(t *testing.T, c *controlplane) {
	data, err := os.ReadFile(s.file())
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for _, secret := range s.secrets {
		line, _, _ := strings.Cut(string(secret), "\n")
		for _, wrong := range []string{
			strings.Replace(good, "username: app", "password: "+strconv.Quote(string(secret)), 1),
			strings.Replace(good, "passwordEnv: ", "passwordEnv: "+strconv.Quote("$"+line)+" #", 1),
			strings.Replace(good, "passwordFile: ", "passwordFile: "+strconv.Quote(line)+" #", 1),
			strings.Replace(good, "username: app", "username: [\""+line, 1),
		} {
			if r := (invocation{args: []string{"validate", "-"}, stdin: wrong}).run(t).want(t, 1); strings.Contains(r.stdout+r.stderr, line) {
				t.Errorf("validate shows a secret: %s%s", r.stdout, r.stderr)
			}
		}
		if strings.Contains(line, "PRIVATE KEY") {
			continue
		}
		s.replace(t, strings.Replace(good, "username: app", "password: "+strconv.Quote(line), 1))
		eventually(t, 5*time.Second, func() error {
			if len(c.status(t).Config.Problems) == 0 {
				return errors.New("the mistake is not seen")
			}
			return nil
		})
		s.replace(t, good)
		eventually(t, 5*time.Second, func() error {
			if p := c.status(t).Config.Problems; len(p) != 0 {
				return fmt.Errorf("problems %q", p)
			}
			return nil
		})
	}
}

// rotate replaces authority and certificates as one does it: trust both, new certificates, trust the new one.
func (s *secured) rotate(t *testing.T, side *sidecar, pause func()) {
	reload := func() {
		t.Helper()
		for _, node := range s.redis {
			if err := node.ReloadTLS(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := s.authority
	s.authority = newAuthority(t)
	s.trust(t, before, s.authority)
	reload()
	pause()
	// A key that does not fit is what anybody sees between two steps; here it stays for a while.
	key, err := os.ReadFile(s.path("redis-client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"redis-client-key.pem", "controlplane-key.pem", "here-0-key.pem"} {
		replaceFile(t, s.path(name), s.secrets["password of the file"])
	}
	pause()
	replaceFile(t, s.path("redis-client-key.pem"), key)
	s.issue(t, "controlplane", certs.Leaf{Name: "controlplane", Hosts: []string{"127.0.0.1", "controlplane"}, Server: true})
	s.issue(t, "redis", redisLeaf)
	s.issue(t, "redis-client", certs.Leaf{Name: "redis-client"})
	s.issue(t, "here-0", sidecarLeaf("here-0"))
	reload()
	eventually(t, 10*time.Second, func() error { return s.envoyUses(side, "redis-client.pem") })
	pause()
	s.trust(t, s.authority)
	reload()
	eventually(t, 10*time.Second, func() error { return s.envoyUses(side, "ca.pem") })
	pause()
}

// envoyUses says whether Envoy has read the certificate that the file holds now.
func (s *secured) envoyUses(side *sidecar, name string) error {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	body, err := page(http.DefaultClient, "http://"+side.admin+"/certs")
	if want := fmt.Sprintf("%x", certificate.SerialNumber); err == nil && !bytes.Contains(body, []byte(want)) {
		err = fmt.Errorf("Envoy has not read %s with the serial number %s", name, want)
	}
	return err
}

// afterRotation makes everybody connect anew.
func (s *secured) afterRotation(t *testing.T, c *controlplane, side *sidecar) {
	for _, node := range s.redis {
		options, err := node.Options()
		if err != nil {
			t.Fatal(err)
		}
		client := newClient(t, options)
		if n, err := client.ClientKillByFilter(t.Context(), "type", "normal", "skipme", "yes").Result(); err != nil || n == 0 {
			t.Errorf("%d connections closed, %v", n, err)
		}
	}
	client := side.client(t)
	for _, key := range []string{"file:1", "file:2", "file:3", "env:1"} {
		eventually(t, 5*time.Second, func() error { return client.Set(t.Context(), key, "after", 0).Err() })
	}
	c.process.Kill()
	c.client = s.client(t)
	c.start(t)
	c.waitSynced(t, side.name)
	source, err := certs.Open(certs.Files{CA: s.path("ca.pem")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", c.xds, source.Client("controlplane"))
	if err != nil {
		t.Errorf("xDS after the rotation: %v", err)
	} else {
		conn.Close()
	}
}

// search looks for the secrets wherever somebody may look.
func (s *secured) search(t *testing.T, c *controlplane, side *sidecar) {
	needles := map[string][][]byte{}
	for what, secret := range s.secrets {
		forms := [][]byte{secret, []byte(base64.StdEncoding.EncodeToString(secret)), []byte(hex.EncodeToString(secret))}
		if block, _ := pem.Decode(secret); block != nil {
			lines := bytes.Split(bytes.TrimSpace(secret), []byte("\n"))
			forms = append(forms, block.Bytes, block.Bytes[36:68], lines[1], []byte(hex.EncodeToString(block.Bytes[36:68])))
		}
		needles[what] = forms
	}
	found := func(content []byte) (secrets []string) {
		for what, forms := range needles {
			if slices.ContainsFunc(forms, func(form []byte) bool { return bytes.Contains(content, form) }) {
				secrets = append(secrets, what)
			}
		}
		return secrets
	}
	// A search that is blind would find nothing, too.
	for _, path := range s.files {
		content, err := os.ReadFile(path)
		if err != nil || len(found(content)) == 0 {
			t.Errorf("no secret is found in %s, which holds one: %v", path, err)
		}
	}
	looked := 0
	look := func(where string, content []byte) {
		looked++
		for _, what := range found(content) {
			t.Errorf("%s shows the %s", where, what)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/v1/status", "/v1/topology", "/v1/sidecars", "/v1/shards", "/"} {
		body, err := page(s.client(t), c.url+path)
		if err != nil {
			t.Error(err)
		}
		look(c.url+path, body)
	}
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/status"} {
		body, err := page(http.DefaultClient, "http://"+side.metrics+path)
		if err != nil {
			t.Error(err)
		}
		look("the agent's "+path, body)
	}
	index, err := page(http.DefaultClient, "http://"+side.admin+"/")
	if err != nil {
		t.Fatal(err)
	}
	pages := []string{"config_dump?include_eds", "stats?format=json", "clusters?format=json", "listeners?format=json"}
	for _, link := range regexp.MustCompile(`<a href='([^']+)'`).FindAllSubmatch(index, -1) {
		pages = append(pages, string(link[1]))
	}
	if len(pages) < 15 {
		t.Errorf("only %q are pages of Envoy's admin", pages)
	}
	for _, path := range pages {
		body, err := page(http.DefaultClient, "http://"+side.admin+"/"+path)
		if err != nil {
			t.Error(err)
		}
		look("Envoy's /"+path, body)
	}
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"where", "file:1"}, {"check"}, {"validate", "-o", "json", s.file()}} {
		if args[0] != "validate" {
			args = append(args, "--controlplane", c.url)
		}
		r := cachemesh(t, args...)
		look(strings.Join(args, " "), []byte(r.stdout+r.stderr))
	}
	err = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || slices.Contains(s.files, path) {
			return err
		}
		content, err := os.ReadFile(path)
		look(path, content)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	status, err := side.agentStatus()
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{c.process.PID(), side.process.PID(), status.Envoy.PID}
	for _, p := range s.nodes {
		pids = append(pids, p.PID())
	}
	for _, pid := range pids {
		arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			t.Error(err)
		}
		look(fmt.Sprintf("the command line of %s", arguments), arguments)
	}
	t.Logf("looked for %d secrets in %d places", len(needles), looked)
}

// page reads a page whatever its status.
func page(client *http.Client, url string) ([]byte, error) {
	response, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func TestListenersBeyondLoopbackNeedTLS(t *testing.T) {
	t.Parallel()
	m := onePool(t, "", 1)
	for _, flag := range []string{"--xds", "--http"} {
		r := cachemesh(t, "controlplane", "--config", m.file(), flag, "0.0.0.0:"+strconv.Itoa(freePorts(t, 1)[0])).want(t, 1)
		for _, word := range []string{flag, "--tls-cert", "--insecure"} {
			if !strings.Contains(r.stderr, word) {
				t.Errorf("%s beyond loopback: %s, want %s named", flag, r.stderr, word)
			}
		}
	}
	r := cachemesh(t, "controlplane", "--config", m.file(), "--tls-cert", filepath.Join(m.dir, "absent.pem"), "--tls-key", "x").want(t, 1)
	if !strings.Contains(r.stderr, "absent.pem") {
		t.Errorf("a missing certificate: %s", r.stderr)
	}
	dir := filepath.Join(m.dir, "certs")
	if r := cachemesh(t, "cert", "dev", "--dir", dir, "--region", region, "--name", "here-0").want(t, 0); !strings.Contains(r.stdout, "development only") {
		t.Errorf("cert dev says %s", r.stdout)
	}
	cachemesh(t, "cert", "dev", "--dir", dir).want(t, 1)
	cachemesh(t, "cert", "dev", "--dir", dir, "--force").want(t, 0)
	at := freeAddresses(t, 2)
	c := &controlplane{xds: at[0], url: "https://" + at[1]}
	source, err := certs.Open(certs.Files{CA: filepath.Join(dir, "ca.pem")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.daemon = daemon{log: filepath.Join(m.dir, "beyond.log"), ready: c.url + "/readyz",
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: source.Client("")}},
		args: []string{"controlplane", "--config", m.file(), "--xds", "0.0.0.0:" + portOf(at[0]), "--http", "0.0.0.0:" + portOf(at[1]),
			"--tls-cert", filepath.Join(dir, "controlplane.pem"), "--tls-key", filepath.Join(dir, "controlplane-key.pem"), "--tls-client-ca", filepath.Join(dir, "ca.pem")}}
	c.start(t)
	cachemesh(t, "status", "--controlplane", c.url, "--tls-ca", filepath.Join(dir, "ca.pem")).want(t, 0)
	if r := cachemesh(t, "status", "--controlplane", c.url).want(t, 1); !strings.Contains(r.stderr, "--tls-ca") {
		t.Errorf("without the authority: %s", r.stderr)
	}
}
