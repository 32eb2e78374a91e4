package controlplane

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/reports"
)

// issue writes DIR/name.pem, its key, and DIR/name-ca.pem.
func issue(t *testing.T, dir, name string, a *certs.Authority, l certs.Leaf) certs.Files {
	t.Helper()
	pair, err := a.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, name)
	if err := pair.Write(base); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(base+"-ca.pem", a.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	return certs.Files{CA: base + "-ca.pem", Cert: base + ".pem", Key: base + "-key.pem"}
}

func source(t *testing.T, f certs.Files) *certs.Source {
	t.Helper()
	s, err := certs.Open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func authority(t *testing.T) *certs.Authority {
	t.Helper()
	a, err := certs.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// subscribe opens a stream as the node and returns the first answer's error.
func subscribe(ctx context.Context, target string, creds credentials.TransportCredentials, node string) (discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	request := &discovery.DeltaDiscoveryRequest{TypeUrl: envoy.ClusterType, Node: &corev3.Node{Id: node, Locality: &corev3.Locality{Region: "home"}}}
	if err := stream.Send(request); err != nil {
		return nil, err
	}
	_, err = stream.Recv()
	return stream, err
}

func TestOnlyASidecarsOwnCertificateIsServed(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := authority(t), authority(t)
	server := issue(t, dir, "server", ours, certs.Leaf{Name: "first", Hosts: []string{"127.0.0.1"}, Server: true})
	ports, err := process.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	path := filepath.Join(dir, "mesh.yaml")
	writeFile(t, path, goodMesh)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan error)
	go func() {
		done <- Run(ctx, Config{File: path, XDS: at(0), HTTP: at(1), TLS: TLS{Files: server, HTTPClients: true}, Version: "test", Logger: quiet})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	leaf := certs.Leaf{Name: "web", SPIFFE: []string{"home", "web"}}
	web := issue(t, dir, "web", ours, leaf)
	expired := leaf
	expired.NotAfter = time.Now().Add(-time.Minute)
	foreign := issue(t, dir, "foreign", theirs, leaf)
	foreign.CA = web.CA
	fetchTLS := func(config *tls.Config, page string) (int, string, error) {
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + at(1) + page)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	get := func(config *tls.Config, page string) (int, error) {
		code, _, err := fetchTLS(config, page)
		return code, err
	}
	read := func(page string) (string, error) {
		_, body, err := fetchTLS(source(t, web).Client("127.0.0.1"), page)
		return body, err
	}
	waitFor(t, "the API answers over TLS", func() bool {
		code, _ := get(source(t, web).Client("127.0.0.1"), "/readyz")
		return code == http.StatusOK
	})

	mine := credentials.NewTLS(source(t, web).Client("127.0.0.1"))
	stream, err := subscribe(ctx, at(0), mine, "web")
	if err != nil {
		t.Fatalf("with the right certificate: %v", err)
	}
	if _, err := subscribe(ctx, at(0), mine, "other"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `"other"`) || !strings.Contains(err.Error(), "spiffe://cachemesh/home/web") {
		t.Errorf("a spoofed node: %v, want PermissionDenied that names both", err)
	}
	spoofed := connectAgent(t, at(0), mine, &reports.Report{Agent: from("other")})
	if _, err := spoofed.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("reports of a spoofed agent: %v, want PermissionDenied", err)
	}
	for name, config := range map[string]*tls.Config{
		"expired":         source(t, issue(t, dir, "expired", ours, expired)).Client("127.0.0.1"),
		"other authority": source(t, foreign).Client("127.0.0.1"),
		"no certificate":  source(t, certs.Files{CA: web.CA}).Client("127.0.0.1"),
		"trusts another":  source(t, certs.Files{CA: filepath.Join(dir, "foreign-ca.pem"), Cert: web.Cert, Key: web.Key}).Client("127.0.0.1"),
	} {
		if _, err := subscribe(ctx, at(0), credentials.NewTLS(config), "web"); err == nil {
			t.Errorf("%s: served over xDS", name)
		}
		if code, err := get(config, "/v1/topology"); err == nil {
			t.Errorf("%s: the API answers %d", name, code)
		}
	}
	if _, err := subscribe(ctx, at(0), insecure.NewCredentials(), "web"); err == nil {
		t.Error("plaintext: served over xDS")
	}
	if body, code := fetch("http://" + at(1) + "/v1/topology"); code == http.StatusOK {
		t.Errorf("plaintext: the API answers %s", body)
	}

	issue(t, dir, "server", ours, certs.Leaf{Name: "short", Hosts: []string{"127.0.0.1"}, Server: true, NotAfter: time.Now().Add(time.Minute)})
	for page, want := range map[string]string{"/v1/status": "ends at", "/metrics": "cachemesh_controlplane_certificate_expiry_timestamp_seconds{"} {
		if body, err := read(page); err != nil || !strings.Contains(body, want) {
			t.Errorf("%s lacks %q: %v", page, want, err)
		}
	}

	// Another certificate of another authority, and clients of both: what is connected stays.
	both := append(ours.PEM(), theirs.PEM()...)
	issue(t, dir, "server", theirs, certs.Leaf{Name: "second", Hosts: []string{"127.0.0.1"}, Server: true})
	if err := os.WriteFile(server.CA, both, 0o644); err != nil {
		t.Fatal(err)
	}
	foreign.CA = filepath.Join(dir, "foreign-ca.pem")
	if _, err := subscribe(ctx, at(0), credentials.NewTLS(source(t, foreign).Client("127.0.0.1")), "web"); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	writeFile(t, path, strings.Replace(goodMesh, "{name: cache,", "{name: cache, hashing: {size: 1021},", 1))
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoy.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("the stream from before the rotation: %v", err)
	}
}

func TestProbesLogInAndFollowRotation(t *testing.T) {
	dir := t.TempDir()
	a, b := authority(t), authority(t)
	node := issue(t, dir, "redis", a, certs.Leaf{Name: "redis", Hosts: []string{"redis", "127.0.0.1"}, Server: true})
	client := issue(t, dir, "client", a, certs.Leaf{Name: "client"})
	secret := filepath.Join(dir, "password")
	if err := os.WriteFile(secret, []byte("sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	redis := process.Redis{Port: ports[0], Dir: dir, User: "app", PasswordFile: secret,
		TLS: &process.RedisTLS{CA: node.CA, Cert: node.Cert, Key: node.Key, Clients: true}}
	p, err := redis.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(time.Second)

	text := strings.NewReplacer("127.0.0.1:7001", redis.Address(), "{name: cache,",
		`{name: cache, redis: {username: app, passwordFile: `+secret+`, tls: {caFile: `+client.CA+`, certFile: `+client.Cert+`, keyFile: `+client.Key+`, serverName: redis}},`).Replace(goodMesh)
	path := filepath.Join(dir, "mesh.yaml")
	writeFile(t, path, text)
	s := &fileSource{path: path, log: quiet}
	first, err := s.first()
	if err != nil {
		t.Fatal(err)
	}
	topology, err := first.mesh.Topology("home")
	if err != nil {
		t.Fatal(err)
	}
	probe := func() NodeStatus {
		// A new prober has no connection from before.
		p := newProber()
		p.round(t.Context(), topology)
		defer p.round(t.Context(), mesh.Topology{})
		return p.status(topology.Pools[0].Shards[0].Nodes[0])
	}
	if got := probe(); !got.Up {
		t.Fatalf("status %+v", got)
	}
	for want, content := range map[string]string{"WRONGPASS": "wrong", "line end": "sesame\n"} {
		if err := os.WriteFile(secret, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := probe(); got.Up || !strings.Contains(got.Error, want) || strings.Contains(got.Error, "sesame") {
			t.Errorf("with password %q: %+v", content, got)
		}
	}
	if err := os.WriteFile(secret, []byte("sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another authority for the probe's trust: the node is a stranger, until its certificate comes from there.
	if err := os.WriteFile(client.CA, b.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := probe(); got.Up {
		t.Error("a node of another authority was probed")
	}
	// As one does it: first both authorities, then the certificates.
	trust := func() {
		if err := os.WriteFile(node.CA, append(a.PEM(), b.PEM()...), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := redis.ReloadTLS(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	trust()
	issue(t, dir, "redis", b, certs.Leaf{Name: "redis", Hosts: []string{"redis", "127.0.0.1"}, Server: true})
	trust()
	issue(t, dir, "client", b, certs.Leaf{Name: "client"})
	if got := probe(); !got.Up {
		t.Errorf("after the rotation: %+v", got)
	}
	status, err := json.Marshal([]any{topology, probe()})
	if err != nil || strings.Contains(string(status), "sesame") {
		t.Errorf("%s, %v: shows the password", status, err)
	}
}
