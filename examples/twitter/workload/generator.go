package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
)

// Request is one request of the load. ID is the user's or tweet's; 0 for trending and for a new tweet.
type Request struct {
	Method string
	Path   string
	Body   []byte
	Thing  Thing
	ID     int64
}

// Population is whom the load is about.
type Population struct {
	Homes  map[int64]string // of every user
	Region string           // whose users ask
	Users  int              // how many of them ask; 0 is all
	Newest int64            // id of the newest tweet
	// Popular are tweets, the most popular first. If there are none, the newest are.
	Popular []int64
}

// Generator draws requests. It is not safe for concurrent use.
type Generator struct {
	rng   *rand.Rand
	parts []generatorPart
	local []int64 // users of the region, most active first
	all   []int64 // all users, most popular first
	Population
}

type generatorPart struct {
	Part
	share      float64 // of the requests
	popularity *Zipf
}

// NewGenerator makes a generator. Generators with different seeds agree on who is popular.
func NewGenerator(mix Mix, p Population, seed uint64) (*Generator, error) {
	g := &Generator{rng: rand.New(rand.NewPCG(seed, 2)), Population: p, all: slices.Sorted(maps.Keys(p.Homes))}
	rand.New(rand.NewPCG(3, 3)).Shuffle(len(g.all), func(i, j int) { g.all[i], g.all[j] = g.all[j], g.all[i] })
	for _, id := range g.all {
		if p.Homes[id] == p.Region && (p.Users == 0 || len(g.local) < p.Users) {
			g.local = append(g.local, id)
		}
	}
	if len(g.local) == 0 {
		return nil, fmt.Errorf("the database has no user whose home is %q: run `twitter seed --regions %s`, or correct --region", p.Region, p.Region)
	}
	if p.Newest == 0 {
		return nil, errors.New("the database has no tweet: run `twitter seed`")
	}
	total := 0.0
	for _, part := range mix {
		total += part.Cluster.KQPS
	}
	for _, part := range mix {
		n := map[Thing]int{Timeline: len(g.local), Profile: len(g.all), TweetOf: int(p.Newest), Trending: 1}[part.Thing]
		if most := part.Cluster.Most; most > 0 {
			n = min(n, most)
		}
		g.parts = append(g.parts, generatorPart{part, part.Cluster.KQPS / total, NewZipf(n, part.Cluster.Alpha)})
	}
	return g, nil
}

// Next draws a request. The newest tweets are the most popular, unless the population says which are. A write of a profile changes its bio; writes of tweets
// and of timelines are posts, by any user of the region alike.
func (g *Generator) Next() Request {
	part := g.parts[len(g.parts)-1]
	draw := g.rng.Float64()
	for _, p := range g.parts {
		if draw < p.share {
			part = p
			break
		}
		draw -= p.share
	}
	read := part.Thing == Trending || g.rng.Float64() < part.Cluster.Reads
	rank := part.popularity.Draw(g.rng)
	switch {
	case part.Thing == Trending:
		return Request{Method: http.MethodGet, Path: "/trending", Thing: Trending}
	case part.Thing == Profile && read:
		return Request{Method: http.MethodGet, Path: fmt.Sprintf("/users/%d", g.all[rank]), Thing: Profile, ID: g.all[rank]}
	case part.Thing == Profile:
		return Request{Method: http.MethodPatch, Path: fmt.Sprintf("/users/%d", g.all[rank]), Thing: Profile, ID: g.all[rank],
			Body: encode(map[string]any{"bio": BioText(g.rng)})}
	case part.Thing == Timeline && read:
		return Request{Method: http.MethodGet, Path: fmt.Sprintf("/timeline/%d", g.local[rank]), Thing: Timeline, ID: g.local[rank]}
	case part.Thing == TweetOf && read:
		id := g.Newest - int64(rank)
		if len(g.Popular) > 0 {
			id = g.Popular[rank%len(g.Popular)]
		}
		return Request{Method: http.MethodGet, Path: fmt.Sprintf("/tweets/%d", id), Thing: TweetOf, ID: id}
	default:
		author := g.local[g.rng.IntN(len(g.local))]
		return Request{Method: http.MethodPost, Path: "/tweets", Thing: TweetOf,
			Body: encode(map[string]any{"user": author, "text": TweetText(g.rng)})}
	}
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of strings and numbers always encode
	}
	return data
}
