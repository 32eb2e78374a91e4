package workload

import (
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestZipfDrawsTheAnalyticMass(t *testing.T) {
	const n, draws = 500, 200_000
	for _, alpha := range []float64{0, 0.3048, 0.83, 1, 1.3726, 2.1106} {
		harmonic := 0.0
		for r := 1; r <= n; r++ {
			harmonic += 1 / math.Pow(float64(r), alpha)
		}
		z, rng := NewZipf(n, alpha), rand.New(rand.NewPCG(1, 2))
		counts := make([]float64, n)
		for range draws {
			counts[z.Draw(rng)]++
		}
		// Pearson's statistic over ranks expected at least 5 times, the rest in one bin; its mean is the degrees of
		// freedom and its variance twice that.
		var statistic, expectedRest, countedRest float64
		bins := 0.0
		for r, counted := range counts {
			expected := draws / math.Pow(float64(r+1), alpha) / harmonic
			if expected < 5 {
				expectedRest, countedRest = expectedRest+expected, countedRest+counted
				continue
			}
			statistic += (counted - expected) * (counted - expected) / expected
			bins++
		}
		if expectedRest > 0 {
			statistic += (countedRest - expectedRest) * (countedRest - expectedRest) / expectedRest
			bins++
		}
		if limit := bins + 5*math.Sqrt(2*bins); statistic > limit {
			t.Errorf("alpha %v: chi-square %.0f over %.0f bins, want below %.0f", alpha, statistic, bins, limit)
		}
	}
}

func TestFacts(t *testing.T) {
	c, err := FindCluster(24)
	if err != nil {
		t.Fatal(err)
	}
	want := Cluster{ID: 24, ValueBytes: 699, KQPS: 5.29, Alpha: 1.3726, Reads: 0.99, TTLs: []TTL{
		{1209600 * time.Second, 0.71}, {60 * time.Second, 0.19}, {2592000 * time.Second, 0.03}, {86400 * time.Second, 0.02}, {3600 * time.Second, 0.02},
	}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("cluster 24 (-want +got):\n%s", diff)
	}
	short := 0
	for range 10_000 {
		ttl := c.TTL()
		if ttl < 54*time.Second {
			t.Fatalf("lifetime %v is more than a tenth below the shortest", ttl)
		}
		if ttl <= 66*time.Second {
			short++
		}
	}
	if short < 1700 || short > 2100 {
		t.Errorf("%d of 10,000 lifetimes are about a minute, want about 1,900", short)
	}
	if _, err := FindCluster(1); err == nil || !strings.Contains(err.Error(), "24") {
		t.Errorf("unknown cluster: error %v, want one that names those there are", err)
	}
}

func TestWorld(t *testing.T) {
	p := Parameters{Users: 500, Tweets: 3000, Regions: []string{"us-east", "eu-west"}, Seed: 7}
	now := time.UnixMilli(1_700_000_000_000)
	w := NewWorld(p, now)
	if diff := cmp.Diff(w, NewWorld(p, now)); diff != "" {
		t.Errorf("the same parameters made another world:\n%s", diff)
	}
	followers, follows := make(map[int64]int), make(map[int64]int)
	for _, f := range w.Follows {
		if f.Follower == f.Followee {
			t.Fatalf("user %d follows itself", f.Follower)
		}
		followers[f.Followee]++
		follows[f.Follower]++
	}
	most, lonely := 0, 0
	for _, u := range w.Users {
		most = max(most, followers[u.ID])
		if follows[u.ID] == 0 {
			lonely++
		}
	}
	if most < p.Users/3 {
		t.Errorf("the best known user has %d followers, want a celebrity", most)
	}
	if lonely == 0 || lonely > p.Users/5 {
		t.Errorf("%d users follow nobody, want a few", lonely)
	}
	bytes := 0
	for _, tweet := range w.Tweets {
		bytes += len(tweet.Text)
		if len(tweet.Text) > longestTweet {
			t.Fatalf("tweet of %d bytes: %q", len(tweet.Text), tweet.Text)
		}
	}
	if mean := bytes / len(w.Tweets); mean < 68 || mean > 88 {
		t.Errorf("tweets have %d bytes on average, want about the measured 78", mean)
	}
}

func TestGeneratorKeepsTheMix(t *testing.T) {
	homes := make(map[int64]string)
	for i := range int64(100) {
		homes[i+1] = []string{"us-east", "eu-west"}[i%2]
	}
	g, err := NewGenerator(Default, Population{Homes: homes, Region: "eu-west", Newest: 1000}, 1)
	if err != nil {
		t.Fatal(err)
	}
	const n = 50_000
	got := make(map[string]float64)
	for range n {
		r := g.Next()
		got[r.Method+" "+string(r.Thing)] += 1.0 / n
		if r.Thing == Timeline && homes[r.ID] != "eu-west" {
			t.Fatalf("timeline of user %d, who lives elsewhere", r.ID)
		}
		if r.Thing == TweetOf && r.Method == http.MethodGet && (r.ID < 1 || r.ID > 1000) {
			t.Fatalf("tweet %d", r.ID)
		}
	}
	const kqps = 5.29 + 4.16 + 9.08 + 3.06
	want := map[string]float64{
		"GET timeline": 5.29 / kqps * 0.99, "GET profile": 4.16 / kqps * 0.97, "PATCH profile": 4.16 / kqps * 0.03,
		"GET tweet": 9.08 / kqps * 0.94, "POST tweet": (5.29*0.01 + 9.08*0.06) / kqps, "GET trending": 3.06 / kqps,
	}
	for name, share := range want {
		if tolerance := 5 * math.Sqrt(share/n); math.Abs(got[name]-share) > tolerance {
			t.Errorf("%s: share %.4f, want %.4f", name, got[name], share)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	if _, err := NewGenerator(Default, Population{Homes: homes, Region: "mars", Newest: 1}, 1); err == nil || !strings.Contains(err.Error(), "mars") {
		t.Errorf("unknown region: error %v", err)
	}
}

func TestParseMix(t *testing.T) {
	m, err := ParseMix("12")
	if err != nil || len(m) != 1 || m[0].Thing != Timeline || m[0].Cluster.Reads != 0.2 {
		t.Errorf("mix 12: %+v, %v", m, err)
	}
	for _, bad := range []string{"", "heavy", "13", "-1"} {
		if _, err := ParseMix(bad); err == nil {
			t.Errorf("mix %q: no error", bad)
		}
	}
}
