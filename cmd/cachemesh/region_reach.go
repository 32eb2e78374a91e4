package main

import (
	"context"
	"slices"

	"github.com/cachemesh/cachemesh/controlplane"
	"github.com/cachemesh/cachemesh/mesh"
)

// reach is who can be asked about all regions.
type reach struct {
	planes  []plane // one a region
	first   mesh.Topology
	failed  []error  // of control planes that did not answer
	missing []string // regions that the first knows and that none of planes is of
}

// reach asks every control plane who it is. One that does not answer need not stop what is to be done in all regions.
func (m *meshFlags) reach(ctx context.Context) (r reach, err error) {
	urls, err := m.urls()
	if err != nil {
		return r, err
	}
	var names []string
	for _, u := range urls {
		s, err := get[controlplane.Status](ctx, m, u, "/v1/status")
		switch {
		case err != nil:
			r.failed = append(r.failed, err)
		case !slices.Contains(names, s.Region): // else another control plane of that region
			names = append(names, s.Region)
			r.planes = append(r.planes, plane{u, s})
		}
	}
	if len(r.planes) == 0 {
		return r, r.failed[0]
	}
	if r.first, err = get[mesh.Topology](ctx, m, r.planes[0].url, "/v1/topology"); err != nil {
		return r, err
	}
	for name := range r.first.Links {
		if !slices.Contains(names, name) {
			r.missing = append(r.missing, name)
		}
	}
	slices.Sort(r.missing)
	return r, nil
}

// regions are all that are known of.
func (r reach) regions() []string {
	var names []string
	for _, p := range r.planes {
		names = append(names, p.status.Region)
	}
	return append(names, r.missing...)
}
