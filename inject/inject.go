// Package inject adds cachemesh's sidecar to the Kubernetes manifests of applications. It works on the text of a YAML file:
// what it does not add stays as it is, byte for byte, comments and unknown fields too. Done twice, it changes nothing more.
//
// It never talks to a cluster and knows only as much of Kubernetes as it needs to find pods. cmd/cachemesh calls it.
package inject

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// Options say which sidecar the pods get.
type Options struct {
	Image         string
	Region        string
	ControlPlanes []string // HOST:PORT, the preferred one first
	// TLSSecret names a Secret whose ca.crt signed the control planes' certificates; "" if TLSIssuer says it.
	TLSSecret string
	// TLSIssuer names the cert-manager issuer, NAME or ClusterIssuer/NAME, from which each pod gets a certificate with its own
	// identity, through cert-manager's CSI driver. With neither, xDS is plaintext.
	TLSIssuer string
	// RedisSecret names a Secret that is mounted at /etc/cachemesh/redis, for the files that mesh.yaml names; "" for none.
	RedisSecret string
	// Link is the port at which the sidecar listens for agents of other regions; 0 is that it does not.
	Link uint16
}

// The names of what is added. An item of such a name is replaced, so that a pod can be injected again.
const (
	container    = "cachemesh"
	stateVolume  = "cachemesh-state"
	socketVolume = "cachemesh-sockets"
	tlsVolume    = "cachemesh-tls"
	redisVolume  = "cachemesh-redis"
)

//go:embed sidecar.yaml
var sidecarText string

var sidecarTemplate = template.Must(template.New("sidecar").Funcs(template.FuncMap{"quote": quote}).Parse(sidecarText))

// quote writes a string so that it is one in YAML, whatever is in it.
func quote(parts ...string) (string, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(strings.Join(parts, "")); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}

// item is an element of a list in a pod, as lines of YAML without indentation.
type item struct {
	name  string
	lines []string
}

// addition is all that a pod gets.
type addition struct {
	sidecar item
	volumes []item
	mount   item // for each of the application's containers
}

var (
	regionPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	objectPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	issuerPattern = regexp.MustCompile(`^((Cluster)?Issuer/)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
)

func (o Options) validate() error {
	if o.Image == "" || strings.ContainsAny(o.Image, " \t\n") {
		return fmt.Errorf("image %q is no name of an image: write one such as registry.example/cachemesh:v1", o.Image)
	}
	if !regionPattern.MatchString(o.Region) {
		return fmt.Errorf("region %q is no name of a region: write it as in mesh.yaml", o.Region)
	}
	if len(o.ControlPlanes) == 0 {
		return errors.New("no control plane is named: write HOST:PORT of at least one of the region")
	}
	for _, address := range o.ControlPlanes {
		host, port, err := net.SplitHostPort(address)
		if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || n == 0 || host == "" || strings.ContainsAny(host, ", \t\n") {
			return fmt.Errorf("control plane %q is no HOST:PORT: write one such as cachemesh-us-east:18000", address)
		}
	}
	if o.TLSSecret != "" && o.TLSIssuer != "" {
		return errors.New("a TLS secret and a TLS issuer exclude each other: the issuer's certificates come with the authority's")
	}
	for what, name := range map[string]string{"TLS secret": o.TLSSecret, "Redis secret": o.RedisSecret} {
		if name != "" && !objectPattern.MatchString(name) {
			return fmt.Errorf("%s %q is no name of a Secret", what, name)
		}
	}
	if o.Link != 0 && o.TLSIssuer == "" {
		return errors.New("a link without a TLS issuer: anybody on the pods' network could remove keys, so name the issuer of the sidecars' certificates")
	}
	if o.TLSIssuer != "" && !issuerPattern.MatchString(o.TLSIssuer) {
		return fmt.Errorf("TLS issuer %q is no name of an issuer: write NAME, Issuer/NAME or ClusterIssuer/NAME", o.TLSIssuer)
	}
	return nil
}

// addition renders what pods get.
func (o Options) addition() (addition, error) {
	var text strings.Builder
	err := sidecarTemplate.Execute(&text, struct {
		Options
		Addresses string
	}{o, strings.Join(o.ControlPlanes, ",")})
	if err != nil {
		return addition{}, err
	}
	a := addition{
		sidecar: newItem(text.String()),
		volumes: []item{
			newItem("name: " + stateVolume + "\nemptyDir: {}"),
			newItem("name: " + socketVolume + "\nemptyDir: {}"),
		},
		// Read-only is enough to connect, and keeps the application from putting a socket of its own there.
		mount: newItem("name: " + socketVolume + "\nmountPath: /run/cachemesh\nreadOnly: true"),
	}
	if o.TLSSecret != "" {
		a.volumes = append(a.volumes, newItem("name: "+tlsVolume+"\nsecret:\n  secretName: "+o.TLSSecret+"\n  items:\n    - key: ca.crt\n      path: ca.crt"))
	}
	if o.TLSIssuer != "" {
		a.volumes = append(a.volumes, o.issuedVolume())
	}
	if o.RedisSecret != "" {
		a.volumes = append(a.volumes, newItem("name: "+redisVolume+"\nsecret:\n  secretName: "+o.RedisSecret))
	}
	return a, nil
}

// issuedVolume holds a certificate whose identity is the name that the sidecar has in this pod.
func (o Options) issuedVolume() item {
	kind, name := path.Split(o.TLSIssuer)
	kind = strings.TrimSuffix(kind, "/")
	if kind == "" {
		kind = "Issuer"
	}
	return newItem(`name: ` + tlsVolume + `
csi:
  driver: csi.cert-manager.io
  readOnly: true
  volumeAttributes:
    csi.cert-manager.io/issuer-kind: ` + kind + `
    csi.cert-manager.io/issuer-name: ` + name + `
    csi.cert-manager.io/uri-sans: spiffe://cachemesh/` + o.Region + `/${POD_NAME}.${POD_NAMESPACE}
    csi.cert-manager.io/fs-group: "65532"`)
}

func newItem(text string) item {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return item{strings.TrimPrefix(lines[0], "name: "), lines}
}

// list renders the item as an element of a list whose dashes are in this column, from 0.
func (i item) list(column int) []string {
	lines := make([]string, len(i.lines))
	indent := strings.Repeat(" ", column)
	for n, line := range i.lines {
		lines[n] = indent + "  " + line
	}
	lines[0] = indent + "- " + i.lines[0]
	return lines
}

// Manifests returns the YAML documents with the sidecar in each pod, and how many pods those are. Documents of other kinds
// are left alone. file is its name, for errors.
func Manifests(file string, data []byte, o Options) (out []byte, pods int, err error) {
	if err := o.validate(); err != nil {
		return nil, 0, err
	}
	add, err := o.addition()
	if err != nil {
		return nil, 0, err
	}
	if out, pods, err = add.to(file, data); err != nil {
		return nil, 0, err
	}
	// Were a line misread, the parser would not find at its place what was added.
	if again, n, err := add.to(file, out); err != nil || n != pods || !bytes.Equal(again, out) {
		return nil, 0, fmt.Errorf("%s is written in a way to which nothing can be added: write its pods as plain indented YAML", file)
	}
	return out, pods, nil
}

// to adds to the pods of a file.
func (a addition) to(file string, data []byte) (out []byte, pods int, err error) {
	found, err := findPods(file, data)
	if err != nil {
		return nil, 0, err
	}
	if len(found) == 0 {
		return nil, 0, fmt.Errorf("%s has nothing to inject: name a file with a %s", file, strings.Join(kinds(), ", "))
	}
	t := text{lines: strings.Split(string(data), "\n"), edits: map[int][]edit{}}
	for _, p := range found {
		if err := p.add(&t, a); err != nil {
			return nil, 0, err
		}
	}
	return []byte(strings.Join(t.apply(), "\n")), len(found), nil
}

func kinds() []string {
	var names []string
	for kind := range podPaths {
		names = append(names, kind)
	}
	slices.Sort(names)
	return names
}
