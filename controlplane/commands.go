package controlplane

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/cachemesh/cachemesh/certs"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/shards"
)

// maxCommandBytes is what a command's body may have.
const maxCommandBytes = 4 << 10

// notLeading refuses a command because another control plane leads, or none.
type notLeading struct {
	leader string // URL of its HTTP API, "" if it is not known
	reason error
}

func (n notLeading) Error() string { return n.reason.Error() }

// commandAPI is the part of the HTTP API that changes something.
type commandAPI struct {
	topology func() mesh.Topology
	ask      func(context.Context, shards.Command) (shards.Event, error)
}

func (a commandAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/shards/{name}/switch", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			To    string `json:"to"` // address; "" is the best replica
			Force bool   `json:"force"`
		}
		if !a.accepts(w, r, &body) {
			return
		}
		if pool, ok := a.shard(w, r); ok {
			a.run(w, r, shards.Command{Kind: shards.Switch, Pool: pool, Shard: r.PathValue("name"), Node: body.To, Force: body.Force})
		}
	})
	mux.HandleFunc("POST /v1/shards/{name}/restart", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Node string `json:"node"` // address
		}
		if !a.accepts(w, r, &body) {
			return
		}
		if body.Node == "" {
			writeError(w, http.StatusBadRequest, errors.New(`the node is missing: say {"node": "IP:port"}`))
			return
		}
		if pool, ok := a.shard(w, r); ok {
			a.run(w, r, shards.Command{Kind: shards.Restarted, Pool: pool, Shard: r.PathValue("name"), Node: body.Node})
		}
	})
	mux.HandleFunc("POST /v1/pools/{pool}/accept", func(w http.ResponseWriter, r *http.Request) {
		if !a.accepts(w, r, &struct{}{}) {
			return
		}
		for _, p := range a.topology().Pools {
			if p.Name == r.PathValue("pool") {
				a.run(w, r, shards.Command{Kind: shards.Accepted, Pool: p.Name})
				return
			}
		}
		writeError(w, http.StatusNotFound, fmt.Errorf("there is no pool %q", r.PathValue("pool")))
	})
}

// accepts answers for a request that may not change anything, or whose body is not what it should be.
func (a commandAPI) accepts(w http.ResponseWriter, r *http.Request, body any) bool {
	return a.acceptsUpTo(maxCommandBytes, w, r, body)
}

func (a commandAPI) acceptsUpTo(limit int64, w http.ResponseWriter, r *http.Request, body any) bool {
	if err := a.mayWrite(r); err != nil {
		writeError(w, http.StatusForbidden, err)
		return false
	}
	// A page in a browser can send neither this type without being asked for permission, nor anything without an Origin.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		writeError(w, http.StatusUnsupportedMediaType, errors.New("send it with Content-Type: application/json"))
		return false
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(body)
	if err == nil {
		if _, err = decoder.Token(); err == nil {
			err = errors.New("something follows the object")
		}
	}
	var long *http.MaxBytesError
	switch {
	case errors.Is(err, io.EOF): // an empty body is an empty object
		return true
	case errors.As(err, &long):
		writeError(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the body has more than %d bytes", limit))
	default:
		writeError(w, http.StatusBadRequest, fmt.Errorf("the body: %w", err))
	}
	return false
}

// mayWrite lets the control plane's own host in, and whoever shows an operator's certificate.
func (a commandAPI) mayWrite(r *http.Request) error {
	if r.Header.Get("Origin") != "" {
		return errors.New("web pages may not change anything: send it without an Origin header")
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		if certificate := r.TLS.PeerCertificates[0]; certs.OfSidecar(certificate) {
			return fmt.Errorf("the certificate of sidecar %q may not change anything: use an operator's", certificate.Subject.CommonName)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return err
	}
	if peer, err := netip.ParseAddr(host); err != nil || !peer.Unmap().IsLoopback() {
		return fmt.Errorf("%s may only read: send it from the control plane's own host, or start the control plane with --http-client-auth and come with an operator's certificate", host)
	}
	return nil
}

// shard is the pool of the shard in the path.
func (a commandAPI) shard(w http.ResponseWriter, r *http.Request) (pool string, ok bool) {
	name := r.PathValue("name")
	for _, p := range a.topology().Pools {
		for _, s := range p.Shards {
			if s.Name == name {
				return p.Name, true
			}
		}
	}
	writeError(w, http.StatusNotFound, fmt.Errorf("there is no shard %q", name))
	return "", false
}

func (a commandAPI) run(w http.ResponseWriter, r *http.Request, command shards.Command) {
	event, err := a.ask(r.Context(), command)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	event.Pool = cmp.Or(event.Pool, command.Pool)
	if event.Time.IsZero() {
		event.Time = time.Now() // a restart is answered before its event is written
	}
	writeJSON(w, http.StatusOK, event)
}

// refuse says why a command was not carried out, or sends it on to who leads.
func (a commandAPI) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var elsewhere notLeading
	switch {
	case errors.As(err, &elsewhere) && elsewhere.leader != "":
		http.Redirect(w, r, elsewhere.leader+r.URL.Path, http.StatusTemporaryRedirect)
	case errors.As(err, &elsewhere):
		writeError(w, http.StatusServiceUnavailable, err)
	default:
		writeError(w, http.StatusConflict, err)
	}
}

func writeError(w http.ResponseWriter, code int, err error) {
	writeJSON(w, code, map[string]string{"error": err.Error()})
}
