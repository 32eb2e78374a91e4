package process

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Consul describes a Consul server on loopback, a datacenter by itself unless Args say otherwise. What it knows is in Dir and survives a restart.
type Consul struct {
	Datacenter          string
	HTTP, RPC, LAN, WAN int    // ports; LAN and WAN are TCP and UDP
	Dir                 string // made if missing; the log goes here
	JoinWAN             []int  // WAN ports of the other datacenters' servers
	Args                []string
}

// Address is that of its HTTP API.
func (c Consul) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.HTTP)) }

func (c Consul) name() string { return fmt.Sprintf("consul-%s-%d", c.Datacenter, c.HTTP) }

// Data is the folder that holds all that it knows.
func (c Consul) Data() string { return filepath.Join(c.Dir, c.name()) }

// Command runs the server.
func (c Consul) Command() ([]string, error) {
	path, err := Find("consul")
	if err != nil {
		return nil, fmt.Errorf("%w (`make consul` builds it)", err)
	}
	command := []string{path, "agent", "-server", "-bootstrap-expect=1", "-node=" + c.name(), "-datacenter=" + c.Datacenter, "-data-dir=" + c.Data(),
		"-bind=127.0.0.1", "-advertise=127.0.0.1", "-client=127.0.0.1", "-log-level=warn", "-disable-host-node-id",
		// An election takes seconds with the default, which allows for slow disks and networks.
		"-hcl=performance { raft_multiplier = 1 }", "-hcl=disable_update_check = true",
		"-http-port=" + strconv.Itoa(c.HTTP), "-server-port=" + strconv.Itoa(c.RPC), "-serf-lan-port=" + strconv.Itoa(c.LAN),
		"-serf-wan-port=" + strconv.Itoa(c.WAN), "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1"}
	for _, port := range c.JoinWAN {
		command = append(command, "-retry-join-wan=127.0.0.1:"+strconv.Itoa(port))
	}
	return append(command, c.Args...), nil
}

// Start runs the server and waits until its datacenter has a leader.
func (c Consul) Start(ctx context.Context) (*Process, error) {
	command, err := c.Command()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Data(), 0o700); err != nil {
		return nil, err
	}
	return Start(ctx, Spec{
		Name: c.name(), Path: command[0], Args: command[1:], Log: filepath.Join(c.Dir, c.name()+".log"),
		Ready: func(ctx context.Context, _ int) error { return c.hasLeader(ctx) },
	})
}

func (c Consul) hasLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Address()+"/v1/status/leader", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var leader string
	if err := json.NewDecoder(resp.Body).Decode(&leader); err != nil {
		return fmt.Errorf("%s: %w", req.URL, err)
	}
	if leader == "" {
		return fmt.Errorf("datacenter %s has no leader yet", c.Datacenter)
	}
	return nil
}
