package test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachemesh/cachemesh/process"
)

// network is hosts on a network of their own: network namespaces with a bridge between them, of which nothing else on this machine knows.
type network struct {
	prefix string // of the namespaces' names
	hosts  map[string]*host
}

// host is one namespace.
type host struct {
	name      string // of the namespace
	ip        string
	namespace *os.File
}

// newNetwork makes a network with these hosts.
func newNetwork(t *testing.T, names ...string) *network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	n := &network{prefix: fmt.Sprintf("cm%d-%s-", os.Getpid(), portOf(freeAddresses(t, 1)[0])), hosts: map[string]*host{}}
	bridge := n.prefix + "bridge"
	namespace := func(name string) {
		t.Helper()
		ip(t, "netns", "add", name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
		ip(t, "-n", name, "link", "set", "lo", "up")
	}
	namespace(bridge)
	ip(t, "-n", bridge, "link", "add", "name", "bridge", "type", "bridge")
	ip(t, "-n", bridge, "link", "set", "bridge", "up")
	for i, name := range names {
		h := &host{name: n.prefix + name, ip: fmt.Sprintf("10.0.0.%d", i+1)}
		namespace(h.name)
		port := fmt.Sprintf("port%d", i)
		ip(t, "-n", bridge, "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", h.name)
		ip(t, "-n", bridge, "link", "set", port, "master", "bridge", "up")
		ip(t, "-n", h.name, "addr", "add", h.ip+"/24", "dev", "eth0")
		ip(t, "-n", h.name, "link", "set", "eth0", "up")
		file, err := os.Open("/run/netns/" + h.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		h.namespace = file
		n.hosts[name] = h
	}
	return n
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// cut loses all packets between two hosts: each sends them to a device that is not there.
func (n *network) cut(t *testing.T, a, b string) {
	t.Helper()
	for _, way := range [][2]string{{a, b}, {b, a}} {
		ip(t, "-n", n.hosts[way[0]].name, "neigh", "replace", n.hosts[way[1]].ip, "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "eth0")
	}
}

func (n *network) mend(t *testing.T, a, b string) {
	t.Helper()
	for _, way := range [][2]string{{a, b}, {b, a}} {
		ip(t, "-n", n.hosts[way[0]].name, "neigh", "del", n.hosts[way[1]].ip, "dev", "eth0")
	}
}

// dial connects from the host.
func (h *host) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	// The thread is another namespace's only meanwhile. It must not end: the programs that it started would end with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := unix.Setns(int(h.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	conn, err = (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(back) // whatever runs on this thread later would be in the wrong network
	}
	return conn, err
}

func (h *host) http() *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DialContext: h.dial}}
}

// start runs a program on the host.
func (h *host) start(t *testing.T, s process.Spec) *process.Process {
	t.Helper()
	path, err := exec.LookPath("ip")
	if err != nil {
		t.Fatal(err)
	}
	s.Path, s.Args = path, append([]string{"netns", "exec", h.name, s.Path}, s.Args...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := process.Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop(8 * time.Second)
		if t.Failed() {
			log, _ := os.ReadFile(s.Log)
			t.Logf("the log of %s:\n%s", s.Name, tail(log))
		}
	})
	return p
}
