package controlplane

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// maxInvalidationBytes is what an Invalidation's body may have.
	maxInvalidationBytes = 1 << 20
	// removeShards is how many shards remove at once.
	removeShards = 16
	// tellEvery is how often the answer says how far a shard is.
	tellEvery = 200 * time.Millisecond
)

// invalidateAPI removes keys from the region's shards because an operator asks for it. Only the control plane that leads does.
type invalidateAPI struct {
	commandAPI
	region string
	leads  func() error
	log    *slog.Logger
}

func (a invalidateAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/regions/invalidate", a.invalidate)
}

func (a invalidateAPI) invalidate(w http.ResponseWriter, r *http.Request) {
	var wanted Invalidation
	if !a.acceptsUpTo(maxInvalidationBytes, w, r, &wanted) {
		return
	}
	if err := a.leads(); err != nil {
		a.refuse(w, r, err)
		return
	}
	removals, err := planRemovals(a.topology(), wanted)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	a.log.Info("an operator has keys removed", "pool", wanted.Pool, "keys", len(wanted.Keys), "prefix", string(wanted.Prefix), "everything", wanted.Everything, "journal", wanted.Journal, "shards", len(removals))
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	var writing sync.Mutex
	lines := json.NewEncoder(w)
	tell := func(s ShardRemoval) {
		writing.Lock()
		defer writing.Unlock()
		lines.Encode(s) // who went away ends the request's context, too
		http.NewResponseController(w).Flush()
	}
	var group errgroup.Group
	group.SetLimit(removeShards)
	for _, removal := range removals {
		group.Go(func() error {
			s := removal.begin(a.region)
			told := time.Now()
			err := removal.run(r.Context(), &s, func() {
				if time.Since(told) >= tellEvery {
					told = time.Now()
					tell(s)
				}
			})
			if s.Done = err == nil; err != nil {
				s.Error = err.Error()
				a.log.Warn("an operator's removal failed", "shard", s.Shard, "node", s.Node, "error", err)
			}
			tell(s)
			return nil
		})
	}
	group.Wait()
}
