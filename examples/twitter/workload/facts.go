// Package workload makes the world that the Twitter example is seeded with and the requests that load it. What
// it knows of popularity, sizes, lifetimes and operations comes from measurements of caches in production
// (facts.csv). It sends nothing itself.
package workload

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed facts.csv
var factsCSV string

var clusters = parseFacts(factsCSV)

// Cluster is what was measured on one cache cluster.
type Cluster struct {
	ID         int
	ValueBytes int     // mean
	KQPS       float64 // thousand operations a second
	Alpha      float64 // Zipf exponent of the keys' popularity
	TTLs       []TTL
	Reads      float64 // share of get and gets among the operations
	Most       int     // how many keys there are at most; 0 is no bound
}

// TTL is a lifetime and the share of the keys that were given it.
type TTL struct {
	Duration time.Duration
	Share    float64
}

// FindCluster returns one of the embedded clusters by its number.
func FindCluster(id int) (Cluster, error) {
	c, ok := clusters[id]
	if !ok {
		return Cluster{}, fmt.Errorf("no facts about cluster %d: have %v", id, slices.Sorted(maps.Keys(clusters)))
	}
	return c, nil
}

// TTL draws a lifetime, spread by a tenth to either side so that what was filled together does not expire together.
func (c Cluster) TTL() time.Duration {
	ttl := c.TTLs[0].Duration // also of the shares that rounding lost
	draw := rand.Float64()
	for _, t := range c.TTLs {
		if draw < t.Share {
			ttl = t.Duration
			break
		}
		draw -= t.Share
	}
	return time.Duration(float64(ttl) * (0.9 + 0.2*rand.Float64()))
}

// parseFacts panics on a bad file: it is part of the program.
func parseFacts(text string) map[int]Cluster {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment = '#'
	rows, err := r.ReadAll()
	if err != nil {
		panic(fmt.Sprintf("facts.csv: %v", err))
	}
	number := func(s string) float64 {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			panic(fmt.Sprintf("facts.csv: %v", err))
		}
		return f
	}
	clusters := make(map[int]Cluster)
	for _, row := range rows[1:] {
		field := make(map[string]string)
		for i, name := range rows[0] {
			field[name] = row[i]
		}
		c := Cluster{
			ID:         int(number(field["cluster"])),
			ValueBytes: int(number(field["value_bytes"])),
			KQPS:       number(field["kqps"]),
			Alpha:      number(field["zipf_alpha"]),
		}
		for _, pair := range strings.Fields(field["ttl_seconds_share"]) {
			seconds, share, _ := strings.Cut(pair, ":")
			c.TTLs = append(c.TTLs, TTL{time.Duration(number(seconds)) * time.Second, number(share)})
		}
		for _, pair := range strings.Fields(field["ops"]) {
			if op, share, _ := strings.Cut(pair, ":"); op == "get" || op == "gets" {
				c.Reads += number(share)
			}
		}
		clusters[c.ID] = c
	}
	return clusters
}
