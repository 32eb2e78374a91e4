package envoy

import (
	"encoding/json"
	"net/netip"
	"path/filepath"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	redisv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/redis_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cachemesh/cachemesh/mesh"
)

// secretNames are those under which a client finds its authorities and its own certificate. Both secrets name files on
// Envoy's host and hold none of what is in them. They are resources of their own, and not part of the cluster, because
// Envoy watches only the files of such for rotation.
type secretNames struct{ authorities, certificate string }

func poolSecrets(pool string) secretNames { return secretNames{pool + "/ca", pool + "/certificate"} }

// secrets are what the clusters of a pool with TLS refer to.
func secrets(p mesh.Pool) []*tlsv3.Secret {
	if p.Redis == nil || p.Redis.TLS == nil {
		return nil
	}
	return clientSecrets(poolSecrets(p.Name), *p.Redis.TLS)
}

func clientSecrets(names secretNames, t mesh.TLSFiles) []*tlsv3.Secret {
	authorities := &tlsv3.CertificateValidationContext{TrustedCa: file(t.CAFile), WatchedDirectory: watched(t.CAFile)}
	if t.ServerName != "" {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if _, err := netip.ParseAddr(t.ServerName); err == nil {
			kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		}
		authorities.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{{
			SanType: kind, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: t.ServerName}},
		}}
	}
	all := []*tlsv3.Secret{{Name: names.authorities, Type: &tlsv3.Secret_ValidationContext{ValidationContext: authorities}}}
	if t.CertFile != "" {
		all = append(all, &tlsv3.Secret{Name: names.certificate, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: file(t.CertFile), PrivateKey: file(t.KeyFile), WatchedDirectory: watched(t.CertFile, t.KeyFile),
		}}})
	}
	return all
}

// clientTLS is how a cluster connects: TLS 1.3, with each secret from its source.
func clientTLS(names secretNames, t mesh.TLSFiles, source func(name string) *corev3.ConfigSource) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, // an Envoy that connects takes 1.2 at most by default
		},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: names.authorities, SdsConfig: source(names.authorities)},
		},
	}
	if t.CertFile != "" {
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: names.certificate, SdsConfig: source(names.certificate)}}
	}
	upstream := &tlsv3.UpstreamTlsContext{CommonTlsContext: common}
	if _, err := netip.ParseAddr(t.ServerName); err != nil {
		upstream.Sni = t.ServerName // an address is none
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(upstream)},
	}
}

// logIn makes a cluster use TLS and a password as its pool says.
func logIn(c *clusterv3.Cluster, p mesh.Pool) {
	a := p.Redis
	if a == nil {
		return
	}
	if a.TLS != nil {
		c.TransportSocket = clientTLS(poolSecrets(p.Name), *a.TLS, func(string) *corev3.ConfigSource { return adsSource() })
		c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{plaintextMatch()}
	}
	options := new(redisv3.RedisProtocolOptions)
	switch {
	case a.PasswordFile != "":
		options.AuthPassword = file(a.PasswordFile)
	case a.PasswordEnv != "":
		options.AuthPassword = &corev3.DataSource{Specifier: &corev3.DataSource_EnvironmentVariable{EnvironmentVariable: a.PasswordEnv}}
	default:
		return
	}
	if a.Username != "" {
		options.AuthUsername = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: a.Username}}
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.filters.network.redis_proxy": pack(options)}
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// watched is the folder of the files: a file that is moved into it counts as a rotation, and so does a folder of
// Kubernetes. Files of several folders are watched one by one, which is Envoy's default.
func watched(paths ...string) *corev3.WatchedDirectory {
	folder := filepath.Dir(paths[0])
	for _, p := range paths[1:] {
		if filepath.Dir(p) != folder {
			return nil
		}
	}
	return &corev3.WatchedDirectory{Path: folder}
}

// bootstrapSecrets are the names in the files that BootstrapSecrets makes.
var bootstrapSecrets = secretNames{"ca", "certificate"}

// secretFile is where an Envoy without an agent finds a secret.
func secretFile(folder, name string) string { return filepath.Join(folder, name+".json") }

func fileSource(folder string) func(name string) *corev3.ConfigSource {
	return func(name string) *corev3.ConfigSource {
		return &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{
				Path: secretFile(folder, name),
			}},
		}
	}
}

// BootstrapSecrets are the files of the folder c.Secrets, as JSON by path, from which an Envoy without an agent has its
// certificates for xDS. Envoy takes one secret from a file.
func BootstrapSecrets(c BootstrapConfig) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, s := range clientSecrets(bootstrapSecrets, c.tlsFiles()) {
		if err := s.ValidateAll(); err != nil {
			return nil, err
		}
		resource, err := protojson.Marshal(pack(s))
		if err != nil {
			return nil, err
		}
		data, err := indent(json.Marshal(map[string]any{"resources": []json.RawMessage{resource}}))
		if err != nil {
			return nil, err
		}
		files[secretFile(c.Secrets, s.Name)] = data
	}
	return files, nil
}
