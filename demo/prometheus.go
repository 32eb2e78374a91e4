package demo

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/cachemesh/cachemesh/observability"
	"github.com/cachemesh/cachemesh/process"
)

// target is an entry of a file that Prometheus reads its targets from.
type target struct {
	Targets []string          `yaml:"targets"`
	Labels  map[string]string `yaml:"labels"`
}

// writePrometheus writes DIR/prometheus: `prometheus --config.file DIR/prometheus/prometheus.yml` watches the demo.
func (l layout) writePrometheus() error {
	dir := filepath.Join(l.options.Dir, "prometheus")
	if err := os.RemoveAll(filepath.Join(dir, "targets")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "targets"), 0o755); err != nil {
		return err
	}
	write := func(name string, data []byte) error { return os.WriteFile(filepath.Join(dir, name), data, 0o644) }
	source := observability.Prometheus()
	names, err := fs.Glob(source, "*.yml")
	if err != nil {
		return err
	}
	for _, name := range names {
		data, err := fs.ReadFile(source, name)
		if err != nil {
			return err
		}
		if l.options.TLS && name == "prometheus.yml" {
			data = trust(data, l.options.certificates("ca.pem"))
		}
		if err := write(name, data); err != nil {
			return err
		}
	}
	var controlplanes, sidecars []target
	for _, r := range l.regions {
		scheme, _, _ := strings.Cut(l.url(r), ":")
		controlplanes = append(controlplanes, target{[]string{r.http}, map[string]string{"region": r.name, "__scheme__": scheme}})
		for _, s := range r.sidecars {
			sidecars = append(sidecars, target{[]string{s.metrics}, map[string]string{"region": r.name, "sidecar": s.name}})
		}
	}
	for name, targets := range map[string][]target{"controlplanes.yml": controlplanes, "sidecars.yml": sidecars} {
		data, err := yaml.Marshal(targets)
		if err != nil {
			return err
		}
		if err := write(filepath.Join("targets", name), data); err != nil {
			return err
		}
	}
	return nil
}

func (o Options) prometheusAddress() string { return fmt.Sprintf("127.0.0.1:%d", 9090+o.PortOffset) }

// startPrometheus starts one that watches the demo, and returns where it is; "" if none is wanted.
func (d *Demo) startPrometheus(ctx context.Context) (string, error) {
	if !d.layout.options.Prometheus {
		return "", nil
	}
	address := d.layout.options.prometheusAddress()
	path, err := process.Find("prometheus")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(d.layout.options.Dir, "prometheus")
	data := filepath.Join(dir, "data")
	if err := os.RemoveAll(data); err != nil { // it is of another run
		return "", err
	}
	_, err = d.run(ctx, "prometheus", []string{path, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", data,
		"--web.listen-address", address}, "http://"+address+"/-/ready")
	return "http://" + address, err
}

// trust makes a prometheus.yml accept the control planes' certificates.
func trust(config []byte, ca string) []byte {
	const job = "  - job_name: cachemesh-controlplane\n"
	return []byte(strings.Replace(string(config), job, job+fmt.Sprintf("    tls_config: {ca_file: %q}\n", ca), 1))
}
