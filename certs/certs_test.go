package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// write issues a certificate into dir/name.pem and returns its files, with the authority's beside them.
func write(t *testing.T, a *Authority, dir, name string, l Leaf) Files {
	t.Helper()
	pair, err := a.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{CA: filepath.Join(dir, name+"-ca.pem"), Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+"-key.pem")}
	if err := pair.Write(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.CA, a.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func open(t *testing.T, f Files) *Source {
	t.Helper()
	s, err := Open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// handshake returns the name of the server's certificate, and what the client and the server say.
func handshake(t *testing.T, client, server *tls.Config) (name string, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			s := tls.Server(conn, server)
			if err = s.Handshake(); err == nil {
				_, err = s.Write([]byte("x"))
			}
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	c := tls.Client(conn, client)
	if clientErr = c.Handshake(); clientErr == nil {
		name = c.ConnectionState().PeerCertificates[0].Subject.CommonName
		// A server's refusal of the client's certificate arrives with the first byte.
		_, clientErr = c.Read(make([]byte, 1))
	}
	conn.Close()
	return name, clientErr, <-done
}

func TestHandshakes(t *testing.T) {
	dir := t.TempDir()
	ours, other := authority(t), authority(t)
	server := open(t, write(t, ours, dir, "server", Leaf{Name: "server", Hosts: []string{"localhost"}, Server: true}))
	good := write(t, ours, dir, "good", Leaf{Name: "good"})
	expired := write(t, ours, dir, "expired", Leaf{Name: "expired", NotAfter: time.Now().Add(-time.Minute)})
	wrong := write(t, other, dir, "wrong", Leaf{Name: "wrong"})
	wrong.CA = good.CA
	for name, c := range map[string]struct {
		client Files
		host   string
		ok     bool
	}{
		"mutual":                  {good, "localhost", true},
		"any name":                {good, "", true},
		"another name":            {good, "elsewhere", false},
		"no certificate":          {Files{CA: good.CA}, "localhost", false},
		"expired":                 {expired, "localhost", false},
		"other authority":         {wrong, "localhost", false},
		"trusts another":          {Files{CA: filepath.Join(dir, "wrong-ca.pem"), Cert: good.Cert, Key: good.Key}, "localhost", false},
		"trusts another, no name": {Files{CA: filepath.Join(dir, "wrong-ca.pem"), Cert: good.Cert, Key: good.Key}, "", false},
	} {
		config := open(t, c.client).Client(c.host)
		if c.host == "" {
			config = open(t, c.client).ClientOfAny()
		}
		_, clientErr, serverErr := handshake(t, config, server.Server(true))
		if got := clientErr == nil && serverErr == nil; got != c.ok {
			t.Errorf("%s: client %v, server %v, want success %v", name, clientErr, serverErr, c.ok)
		}
	}
	// The name is left out, not the purpose: a client's certificate serves nobody.
	client := open(t, good)
	if _, err, _ := handshake(t, client.ClientOfAny(), client.Server(false)); err == nil {
		t.Error("a client's certificate was taken for a server's")
	}
	old := open(t, good).Client("localhost")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err, _ := handshake(t, old, server.Server(true)); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

func TestRotationIsTakenAtTheNextHandshakeAndABrokenOneNever(t *testing.T) {
	dir := t.TempDir()
	a := authority(t)
	files := write(t, a, dir, "server", Leaf{Name: "first", Hosts: []string{"localhost"}, Server: true})
	var log bytes.Buffer
	source, err := Open(files, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	server := source.Server(false)
	serves := func(authority Files) string {
		t.Helper()
		name, err, _ := handshake(t, open(t, authority).Client("localhost"), server)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	trust := Files{CA: files.CA}
	if got := serves(trust); got != "first" {
		t.Errorf("serves %s", got)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, a, dir, "server", Leaf{Name: "second", Hosts: []string{"localhost"}, Server: true})
	if got := serves(trust); got != "second" {
		t.Errorf("serves %s, want the rotated one", got)
	}
	// The key of another certificate, as between the two steps of a rotation; then none; then nonsense.
	if err := os.WriteFile(files.Key, key, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serves(trust); got != "second" {
		t.Errorf("serves %s, want what worked", got)
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	if got := serves(trust); got != "second" {
		t.Errorf("serves %s, want what worked", got)
	}
	write(t, a, dir, "server", Leaf{Name: "third", Hosts: []string{"localhost"}, Server: true})
	if got := serves(trust); got != "third" {
		t.Errorf("serves %s, want the third", got)
	}
	block, _ := pem.Decode(key)
	for _, secret := range [][]byte{key, block.Bytes, bytes.Split(key, []byte("\n"))[1]} {
		if bytes.Contains(log.Bytes(), secret) {
			t.Errorf("the log shows the key: %s", &log)
		}
	}
	if !strings.Contains(log.String(), "not taken anew") || !strings.Contains(log.String(), "certificates taken anew") {
		t.Errorf("the log says %s", &log)
	}
}

func TestExpiresSoon(t *testing.T) {
	s := open(t, write(t, authority(t), t.TempDir(), "a", Leaf{Name: "a", NotAfter: time.Now().Add(10 * time.Hour)}))
	for after, want := range map[time.Duration]bool{0: false, 7 * time.Hour: false, 9 * time.Hour: true, 11 * time.Hour: true} {
		if at, soon := s.Expires(time.Now().Add(after)); soon != want || at.IsZero() {
			t.Errorf("after %s: at %s, soon %v, want %v", after, at, soon, want)
		}
	}
}

func TestOpenNamesFileAndRemedy(t *testing.T) {
	dir := t.TempDir()
	good := write(t, authority(t), dir, "good", Leaf{Name: "good"})
	for want, f := range map[string]Files{
		"name both files":        {Cert: good.Cert},
		"absent.pem: no such":    {CA: filepath.Join(dir, "absent.pem")},
		"holds no certificate":   {CA: good.Key},
		"no certificate with":    {Cert: good.Cert, Key: good.Cert},
		"put a PEM file there":   {Cert: good.Cert, Key: filepath.Join(dir, "absent.pem")},
		"holds no certificate: ": {CA: good.Key, Cert: good.Cert, Key: good.Key},
	} {
		if _, err := Open(f, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", f, err, want)
		}
	}
}

func TestRules(t *testing.T) {
	a := authority(t)
	leaf := func(l Leaf) *x509.Certificate {
		pair, err := a.Issue(l)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(pair.Cert)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	own := leaf(Leaf{Name: "web-1", SPIFFE: []string{"us-east", "web-1"}, Hosts: []string{"web-1", "127.0.0.1"}})
	for name, c := range map[string]struct {
		rule         Rule
		certificate  *x509.Certificate
		region, node string
		says         []string // nil is no error
	}{
		"own":                {SPIFFE, own, "us-east", "web-1", nil},
		"another name":       {SPIFFE, own, "us-east", "web-2", []string{`"web-2"`, "spiffe://cachemesh/us-east/web-1"}},
		"another region":     {SPIFFE, own, "eu-west", "web-1", []string{`"eu-west"`, "spiffe://cachemesh/us-east/web-1"}},
		"path in the name":   {SPIFFE, leaf(Leaf{SPIFFE: []string{"a", "b", "c"}}), "a", "b/c", []string{`"b/c"`}},
		"no id":              {SPIFFE, leaf(Leaf{Name: "redis", Hosts: []string{"web-1"}}), "us-east", "web-1", []string{`"web-1"`, `"redis"`}},
		"no certificate":     {SPIFFE, nil, "us-east", "web-1", []string{`"web-1"`, "--tls-cert"}},
		"own by DNS":         {DNS, own, "us-east", "web-1", nil},
		"another by DNS":     {DNS, own, "us-east", "web-2", []string{`"web-2"`, `"web-1"`}},
		"no name by DNS":     {DNS, leaf(Leaf{SPIFFE: []string{"us-east", "web-1"}}), "us-east", "web-1", []string{"no DNS name"}},
		"no certificate/DNS": {DNS, nil, "us-east", "web-1", []string{"--tls-cert"}},
	} {
		err := c.rule.Check(c.certificate, c.region, c.node)
		if (err == nil) != (c.says == nil) {
			t.Errorf("%s: error %v", name, err)
		}
		for _, want := range c.says {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", name, err, want)
			}
		}
	}
}

func TestWriteDevelopment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	d := Development{Sidecars: []Sidecar{{"us-east", "a"}, {"us-east", "b"}, {"eu-west", "a"}}, Hosts: []string{"10.0.0.5"}}
	made, err := WriteDevelopment(dir, d)
	if err != nil || len(made) != 1+3+3 {
		t.Fatalf("made %v, %v", made, err)
	}
	keys := 0
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if info, _ := e.Info(); strings.HasSuffix(path, "-key.pem") {
			keys++
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
		}
		return err
	})
	if keys != 7 {
		t.Errorf("%d keys, want 7", keys)
	}
	if _, err := WriteDevelopment(dir, d); !errors.Is(err, ErrThere) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("error %v, want that there are certificates", err)
	}
	files := func(base string) Files {
		return Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, base+".pem"), Key: filepath.Join(dir, base+"-key.pem")}
	}
	plane, sidecar := open(t, files("controlplane")), open(t, files("us-east/a"))
	for _, host := range []string{"localhost", "127.0.0.1", "controlplane", "10.0.0.5"} {
		if _, clientErr, serverErr := handshake(t, sidecar.Client(host), plane.Server(true)); clientErr != nil || serverErr != nil {
			t.Errorf("%s: %v, %v", host, clientErr, serverErr)
		}
	}
	if err := SPIFFE.Check(sidecar.now().leaf, "us-east", "a"); err != nil {
		t.Error(err)
	}
	d.Force = true
	if _, err := WriteDevelopment(dir, d); err != nil {
		t.Fatal(err)
	}
	if _, clientErr, serverErr := handshake(t, sidecar.Client("localhost"), plane.Server(true)); clientErr != nil || serverErr != nil {
		t.Errorf("after all files are replaced: %v, %v", clientErr, serverErr)
	}
	for _, bad := range []Development{{Sidecars: []Sidecar{{"x", "no/name"}}}, {Sidecars: []Sidecar{{"../x", "a"}}}} {
		empty := t.TempDir()
		if _, err := WriteDevelopment(empty, bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
		if left, _ := os.ReadDir(empty); len(left) != 0 {
			t.Errorf("%+v left %v", bad, left)
		}
	}
}
