package mesh

import (
	"path/filepath"
	"strings"
)

// RedisAccess says how sidecars and control planes log in to a pool's nodes. It names files and a variable on their hosts
// and holds no secret, so it may be shown, sent and stored.
type RedisAccess struct {
	// Name of the Redis user; without one, the password is that of Redis's default user.
	Username string `yaml:"username,omitempty" json:"username,omitempty"`
	// Absolute path of a file, on the hosts of sidecars and control planes, that holds the password and nothing else, no line end either.
	PasswordFile string `yaml:"passwordFile,omitempty" json:"password_file,omitempty"`
	// Name of an environment variable of sidecars and control planes that holds the password; instead of passwordFile.
	PasswordEnv string `yaml:"passwordEnv,omitempty" json:"password_env,omitempty"`
	// TLS to the nodes; without it connections are plaintext.
	TLS *TLSFiles `yaml:"tls,omitempty" json:"tls,omitempty"`
}

// TLSFiles are what a client needs for TLS, as absolute paths of PEM files on its host.
type TLSFiles struct {
	// Certificates of the authorities that the server's certificate must come from.
	CAFile string `yaml:"caFile" json:"ca_file"`
	// The client's own certificate, for servers that ask for one; together with keyFile.
	CertFile string `yaml:"certFile,omitempty" json:"cert_file,omitempty"`
	// The private key of certFile.
	KeyFile string `yaml:"keyFile,omitempty" json:"key_file,omitempty"`
	// DNS name that the server's certificate must hold; without one, any certificate from caFile is taken.
	ServerName string `yaml:"serverName,omitempty" json:"server_name,omitempty"`
}

// access checks how to log in. Values stay out of the messages: who mistakes a field may have written a secret into it.
func (v *validation) access(field string, a *RedisAccess) {
	if a == nil {
		return
	}
	switch {
	case a.PasswordFile != "" && a.PasswordEnv != "":
		v.add(field+".passwordEnv", "keep passwordFile or passwordEnv", "the password comes from passwordFile already")
	case a.Username != "" && a.PasswordFile == "" && a.PasswordEnv == "":
		v.add(field+".username", "add passwordFile or passwordEnv", "a user without a password cannot log in")
	}
	v.path(field+".passwordFile", a.PasswordFile)
	if a.PasswordEnv != "" && !isVariable(a.PasswordEnv) {
		v.add(field+".passwordEnv", "write the variable's name, such as REDIS_PASSWORD, and never the password", "this is no name of an environment variable")
	}
	v.tls(field+".tls", a.TLS)
}

func (v *validation) tls(field string, t *TLSFiles) {
	if t == nil {
		return
	}
	if t.CAFile == "" {
		v.add(field+".caFile", "name the file with the certificates of who signs the servers'", "is empty")
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		v.add(field, "add the other one, or leave both out", "certFile and keyFile belong together")
	}
	v.path(field+".caFile", t.CAFile)
	v.path(field+".certFile", t.CertFile)
	v.path(field+".keyFile", t.KeyFile)
}

// path refuses a relative path: it would be another file to each program that reads it.
func (v *validation) path(field, path string) {
	if path != "" && !filepath.IsAbs(path) {
		v.add(field, "write the absolute path of a file, and never what is in it", "this is no absolute path")
	}
}

func isVariable(name string) bool {
	const letters = "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return strings.ContainsRune(letters, rune(name[0])) && strings.Trim(name, letters+"0123456789") == ""
}
