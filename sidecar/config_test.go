package sidecar

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestConfigIsChecked(t *testing.T) {
	valid := newSidecar(t, "127.0.0.1:18000").config
	valid.Logger = slog.New(slog.DiscardHandler)
	if _, err := valid.complete(); err != nil {
		t.Fatalf("a valid configuration: %v", err)
	}
	long := "/" + strings.Repeat("x", 107)
	for want, change := range map[string]func(*Config){
		"name is empty":                        func(c *Config) { c.Name = "" },
		"region is empty":                      func(c *Config) { c.Region = "" },
		"dir is empty":                         func(c *Config) { c.Dir = "" },
		"use a shorter --dir":                  func(c *Config) { c.Dir = long },
		long:                                   func(c *Config) { c.Addresses.Socket = long },
		"no control plane":                     func(c *Config) { c.ControlPlanes = nil },
		`control planes: "here"`:               func(c *Config) { c.ControlPlanes = []string{"here"} },
		`"here:0" is not a host`:               func(c *Config) { c.ControlPlanes = []string{"here:0"} },
		`metrics: "0.0.0.0:9902" is reachable`: func(c *Config) { c.Metrics = "0.0.0.0:9902" },
		`admin: "0.0.0.0:9901"`:                func(c *Config) { c.Admin = "0.0.0.0:9901" },
		`admin: ""`:                            func(c *Config) { c.Admin = "" },
		`metrics: "localhost:9902"`:            func(c *Config) { c.Metrics = "localhost:9902" },
		`metrics: "[::]:0"`:                    func(c *Config) { c.Metrics = "[::]:0" },
		`addresses: listener redis: `:          func(c *Config) { c.Addresses.Redis = "10.0.0.1:6379" },
		"is not a program":                     func(c *Config) { c.Envoy = c.Dir },
		"concurrency is -1":                    func(c *Config) { c.Concurrency = -1 },
		"drain timeout is -1s":                 func(c *Config) { c.DrainTimeout = -time.Second },
	} {
		c := valid
		change(&c)
		if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}
