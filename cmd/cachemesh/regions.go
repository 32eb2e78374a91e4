package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/controlplane"
)

// completeWithin bounds what a completion waits for: a shell that hangs is worse than one that offers nothing.
const completeWithin = time.Second

// plane is a region's control plane that answers commands.
type plane struct {
	url    string
	status controlplane.Status
}

// planes are the regions, or the one that is named, each once. All of them must answer, since a name that only one has could
// be another's, too.
func (m *meshFlags) planes(ctx context.Context, region string) ([]plane, error) {
	urls, err := m.urls()
	if err != nil {
		return nil, err
	}
	var all []plane
	var names []string
	var failed []error
	for _, u := range urls {
		s, err := get[controlplane.Status](ctx, m, u, "/v1/status")
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if slices.Contains(names, s.Region) {
			continue // another control plane of that region
		}
		names = append(names, s.Region)
		if region == "" || region == s.Region {
			all = append(all, plane{u, s})
		}
	}
	switch {
	case region != "" && len(all) > 0:
		return all, nil
	case len(failed) > 0:
		return nil, errors.Join(failed...)
	case len(all) == 0:
		return nil, usage("there is no region %q: the mesh has %s", region, strings.Join(names, ", "))
	}
	return all, nil
}

// only is the one region that has something; what says what that is.
func only(all []plane, has func(controlplane.Status) bool, what string) (plane, error) {
	var found []plane
	var names []string
	for _, p := range all {
		if has(p.status) {
			found = append(found, p)
			names = append(names, p.status.Region)
		}
	}
	switch len(found) {
	case 0:
		return plane{}, usage("there is no %s", what)
	case 1:
		return found[0], nil
	}
	return plane{}, usage("several regions have a %s: choose one with --region: %s", what, strings.Join(names, ", "))
}

func hasShard(name string) func(controlplane.Status) bool {
	return func(s controlplane.Status) bool { _, ok := shardOf(s, name); return ok }
}

func shardOf(s controlplane.Status, name string) (controlplane.ShardStatus, bool) {
	i := slices.IndexFunc(s.Shards, func(s controlplane.ShardStatus) bool { return s.Name == name })
	if i < 0 {
		return controlplane.ShardStatus{}, false
	}
	return s.Shards[i], true
}

// poolOf are the shards of a pool.
func poolOf(s controlplane.Status, pool string) (shards []controlplane.ShardStatus) {
	for _, shard := range s.Shards {
		if shard.Pool == pool {
			shards = append(shards, shard)
		}
	}
	return shards
}

// complete offers words that the running mesh knows, for the flags that were given so far.
func (m *meshFlags) complete(region *string, words func(s controlplane.Status, args []string) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		all, err := m.planes(ctx, *region)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var found []string
		for _, p := range all {
			found = append(found, words(p.status, args)...)
		}
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
}

func shardNames(s controlplane.Status, args []string) (names []string) {
	if len(args) > 0 {
		return nil // one is enough
	}
	for _, shard := range s.Shards {
		names = append(names, shard.Name)
	}
	return names
}

func poolNames(s controlplane.Status, args []string) (names []string) {
	if len(args) > 0 {
		return nil
	}
	for _, shard := range s.Shards {
		names = append(names, shard.Pool)
	}
	return names
}

// completeNames completes the flags of a command that name a region, a pool or a shard.
func (m *meshFlags) completeNames(cmd *cobra.Command, region *string) {
	everywhere := new(string)
	for flag, f := range map[string]cobra.CompletionFunc{
		"region": m.complete(everywhere, func(s controlplane.Status, _ []string) []string { return []string{s.Region} }),
		"pool":   m.complete(region, func(s controlplane.Status, _ []string) []string { return poolNames(s, nil) }),
		"shard":  m.complete(region, func(s controlplane.Status, _ []string) []string { return shardNames(s, nil) }),
	} {
		if cmd.Flags().Lookup(flag) != nil {
			cmd.RegisterFlagCompletionFunc(flag, f)
		}
	}
}
