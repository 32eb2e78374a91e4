package mesh

// Membership says where the shards' nodes are known from.
type Membership struct {
	// Nodes register in Consul, as services named cachemesh-shard.
	Consul *ConsulSpec `yaml:"consul,omitempty"`
	// Shards join rings when a node of theirs registers, and leave when the last one deregisters (default false: only shards of
	// this file are on rings).
	Auto bool `yaml:"auto,omitempty"`
}

// ConsulSpec is how a control plane reaches the Consul of its region. What is left out is as Consul's client has it from
// its environment variables (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and so on).
type ConsulSpec struct {
	// Address of the Consul agent or server, such as 127.0.0.1:8500 (the default).
	Address string `yaml:"address,omitempty"`
	// File with the ACL token, which must allow service:read and node:read. It is read anew for each request.
	TokenFile string `yaml:"tokenFile,omitempty"`
	// Namespace, where Consul has them.
	Namespace string `yaml:"namespace,omitempty"`
	// TLS to Consul. Left out: plaintext.
	TLS *ConsulTLS `yaml:"tls,omitempty"`
}

// ConsulTLS names the files for TLS to Consul.
type ConsulTLS struct {
	// Certificates of the authorities that Consul's certificate may come from (default: the system's).
	CAFile string `yaml:"caFile,omitempty"`
	// Certificate of this client, where Consul asks for one.
	CertFile string `yaml:"certFile,omitempty"`
	// Key of this client's certificate.
	KeyFile string `yaml:"keyFile,omitempty"`
	// Name in Consul's certificate, if it is not that of the address.
	ServerName string `yaml:"serverName,omitempty"`
}

func (v *validation) membership(m Membership) {
	switch {
	case m.Consul == nil && m.Auto:
		v.add("membership.auto", "add membership.consul, or remove this", "nobody registers shards in a file")
	case m.Consul != nil && m.Consul.TLS != nil && (m.Consul.TLS.CertFile == "") != (m.Consul.TLS.KeyFile == ""):
		v.add("membership.consul.tls", "give both or none", "certFile and keyFile go together")
	}
}

func (v *validation) nodes(field string, s ShardSpec, m Membership) {
	switch {
	case m.Consul == nil && len(s.Nodes) == 0:
		v.add(field, "write the IP:port of the shard's Redis, or let nodes register with membership.consul", "shard %q has no node", s.Name)
	case m.Consul != nil && len(s.Nodes) > 0:
		v.add(field, "remove it and register the nodes, or remove membership.consul", "the nodes of shard %q come from Consul", s.Name)
	}
}
