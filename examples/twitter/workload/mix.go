package workload

import (
	"fmt"
	"slices"
	"strconv"
)

// Thing is what a request asks for.
type Thing string

// The things of the application.
const (
	Timeline Thing = "timeline"
	Profile  Thing = "profile"
	TweetOf  Thing = "tweet"
	Trending Thing = "trending"
)

// Mix says which measured cluster each thing behaves like. A thing's share of the requests is its cluster's share of
// the operations a second; reads and writes divide as the cluster's do.
type Mix []Part

// Part is one thing of a mix.
type Part struct {
	Thing   Thing
	Cluster Cluster
}

// Default is the everyday mix; it also gives the sizes of the seeded world and the lifetimes of cached entries.
//
//   - Timelines are cluster 24: storage, 0.99 of the operations are gets, and 699 bytes are about a list of 20 tweets' ids.
//   - Profiles are cluster 11: storage, mostly read, some changed (add, cas), 170 bytes.
//   - Tweets are cluster 36: storage, written once (add) and read, 78 bytes.
//   - Trending hashtags are cluster 35: computed, the same short lifetime for all.
var Default = Mix{
	{Timeline, clusters[24]},
	{Profile, clusters[11]},
	{TweetOf, clusters[36]},
	{Trending, clusters[35]},
}

// Day is the default mix but for more tweets: of the operations on tweets every other one posts, as in an evening on which people talk, so that in the
// morning a timeline holds nothing that was in it the evening before.
var Day = func() Mix {
	m := slices.Clone(Default)
	m[2].Cluster.Reads = 0.5
	return m
}()

// ReadHeavy has the storage clusters of which 0.99 of the operations are gets, each with values of about the thing's size.
var ReadHeavy = Mix{
	{Timeline, clusters[24]},
	{Profile, clusters[3]},
	{TweetOf, clusters[17]},
}

// Races are reads and changes of few profiles, so that a change mostly meets reads that miss it. The measurements say nothing of that.
var Races = Mix{{Profile, Cluster{KQPS: 1, Alpha: 0.5, Reads: 0.97, Most: 20}}}

// ParseMix returns the mix called default, read-heavy or races, or, for a cluster's number, timelines alone with that
// cluster's popularity and operations.
func ParseMix(name string) (Mix, error) {
	switch name {
	case "default":
		return Default, nil
	case "read-heavy":
		return ReadHeavy, nil
	case "races":
		return Races, nil
	}
	id, err := strconv.Atoi(name)
	if err != nil {
		return nil, fmt.Errorf("mix %q: use default, read-heavy, races or the number of a cluster", name)
	}
	c, err := FindCluster(id)
	if err != nil {
		return nil, fmt.Errorf("mix %q: %w", name, err)
	}
	return Mix{{Timeline, c}}, nil
}

// Cluster returns the cluster that a thing of the mix behaves like.
func (m Mix) Cluster(thing Thing) Cluster {
	for _, p := range m {
		if p.Thing == thing {
			return p.Cluster
		}
	}
	panic("the mix has no " + string(thing))
}
