package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/certs"
)

// tlsFlags say whom a command believes to be a server, and who it is itself.
type tlsFlags struct {
	files      certs.Files
	serverName string
}

// register adds the flags; whose says whose certificates they are about.
func (t *tlsFlags) register(cmd *cobra.Command, whose, defaultCA string) {
	f := cmd.Flags()
	f.StringVar(&t.files.CA, "tls-ca", "", "PEM file with the authority of "+whose+" certificates (or CACHEMESH_TLS_CA; default: "+defaultCA+")")
	f.StringVar(&t.files.Cert, "tls-cert", "", "PEM file with a certificate for servers that ask for one (or CACHEMESH_TLS_CERT)")
	f.StringVar(&t.files.Key, "tls-key", "", "PEM file with its key (or CACHEMESH_TLS_KEY)")
	f.StringVar(&t.serverName, "tls-server-name", "", "name in "+whose+" certificates, also of one that a command is sent on to (or CACHEMESH_TLS_SERVER_NAME; default: the host of the URL)")
	for _, flag := range []string{"tls-ca", "tls-cert", "tls-key"} {
		cmd.MarkFlagFilename(flag, "pem", "crt", "key")
	}
}

// orEnvironment are the files of the flags, else of the environment.
func (t *tlsFlags) orEnvironment() certs.Files {
	return certs.Files{
		CA:   cmp.Or(t.files.CA, os.Getenv("CACHEMESH_TLS_CA")),
		Cert: cmp.Or(t.files.Cert, os.Getenv("CACHEMESH_TLS_CERT")),
		Key:  cmp.Or(t.files.Key, os.Getenv("CACHEMESH_TLS_KEY")),
	}
}

// client speaks TLS to https URLs. Close its idle connections when it is not used any more.
func (t *tlsFlags) client(files certs.Files) (*http.Client, error) {
	source, err := certs.Open(files, nil)
	if err != nil {
		return nil, err
	}
	name := cmp.Or(t.serverName, os.Getenv("CACHEMESH_TLS_SERVER_NAME"))
	return &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: source.Client(name)}}, nil
}

// mistrust says which flag may help if err is that a server's certificate is not believed; else it is nil.
func mistrust(server string, err error) error {
	var misnamed x509.HostnameError
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &misnamed):
		return fmt.Errorf("the certificate of %s is another's: %w: name one of its names with --tls-server-name", server, err)
	case errors.As(err, &untrusted):
		return fmt.Errorf("the certificate of %s is not trusted: %w: name its authority with --tls-ca", server, err)
	}
	return nil
}
