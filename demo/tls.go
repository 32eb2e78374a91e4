package demo

import (
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
)

// redisUser is the only user of the demo's Redis nodes with TLS; the default user is off.
const redisUser = "app"

func (o Options) certificates(name string) string { return filepath.Join(o.Dir, "certs", name) }
func (o Options) passwordFile() string            { return o.certificates("redis-password") }

// poolsWith are the pools, with how to log in to their nodes.
func poolsWith(o Options) []mesh.PoolSpec {
	chosen := make([]mesh.PoolSpec, len(pools))
	for i, p := range pools {
		p.Routes = slices.Clone(p.Routes)
		for j, r := range p.Routes {
			if !o.Coherent {
				p.Routes[j] = local(r.Prefix)
			}
		}
		if o.TLS {
			p.Redis = &mesh.RedisAccess{Username: redisUser, PasswordFile: o.passwordFile(),
				TLS: &mesh.TLSFiles{CAFile: o.certificates("ca.pem"), ServerName: "redis"}}
		}
		chosen[i] = p
	}
	return chosen
}

// writeCertificates makes new ones, and a new password, for each demo.
func (l layout) writeCertificates() error {
	d := certs.Development{Force: true}
	for _, r := range l.regions {
		for _, s := range r.sidecars {
			d.Sidecars = append(d.Sidecars, certs.Sidecar{Region: r.name, Name: s.name})
		}
	}
	if _, err := certs.WriteDevelopment(l.options.certificates(""), d); err != nil {
		return err
	}
	return os.WriteFile(l.options.passwordFile(), []byte(rand.Text()), 0o600)
}

func (o Options) controlplaneTLS() []string {
	if !o.TLS {
		return nil
	}
	return []string{"--tls-cert", o.certificates("controlplane.pem"), "--tls-key", o.certificates("controlplane-key.pem"), "--tls-client-ca", o.certificates("ca.pem")}
}

func (o Options) sidecarTLS(region, name string) []string {
	if !o.TLS {
		return nil
	}
	base := o.certificates(filepath.Join(region, name))
	return []string{"--tls-ca", o.certificates("ca.pem"), "--tls-cert", base + ".pem", "--tls-key", base + "-key.pem"}
}

// redis is one of the demo's nodes.
func (l layout) redis(n nodeLayout) process.Redis {
	r := process.Redis{Port: n.port, Dir: filepath.Join(l.options.Dir, "logs"), Managed: true, MaxMemory: "64mb"}
	if o := l.options; o.TLS {
		r.User, r.PasswordFile = redisUser, o.passwordFile()
		r.TLS = &process.RedisTLS{CA: o.certificates("ca.pem"), Cert: o.certificates("redis.pem"), Key: o.certificates("redis-key.pem")}
	}
	return r
}

// url is where a control plane's API is.
func (l layout) url(r regionLayout) string {
	if l.options.TLS {
		return "https://" + r.http
	}
	return "http://" + r.http
}

// client reads the pages of all programs of the demo.
func (l layout) client() (*http.Client, error) {
	if !l.options.TLS {
		return http.DefaultClient, nil
	}
	source, err := certs.Open(certs.Files{CA: l.options.certificates("ca.pem")}, nil)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: source.Client("")}}, nil
}
