package demo

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cachemesh/cachemesh/mesh"
)

// places are where the regions are, and how late it is there.
var places = map[string]struct {
	timezone string
	location mesh.Location
}{
	"us-east": {"America/New_York", mesh.Location{Latitude: 38.9, Longitude: -77.4}},
	"eu-west": {"Europe/Paris", mesh.Location{Latitude: 48.9, Longitude: 2.4}},
}

// celebrityFollowers is how many followers make a celebrity among the example's users.
const celebrityFollowers = 500

// place says where the regions are.
func (l *layout) place() {
	for i := range l.mesh.Regions {
		r := &l.mesh.Regions[i]
		place := places[r.Name]
		r.Timezone, r.Location = place.timezone, &place.location
	}
}

// plans are one by the time of day, one by who posts, one by where it happens, and one for a region that comes back.
func (l *layout) plans() *mesh.Warming {
	tweets := mesh.Keys{Route: "tweet:"}
	loader := mesh.Source{Loader: &mesh.Loader{URL: l.loader(""), TokenFile: l.options.loaderToken()}}
	tweet := []string{"tweet:{{event.id}}"}
	return &mesh.Warming{Plans: []mesh.Plan{
		{Name: "morning-trending", Schedule: &mesh.Schedule{Cron: "30 6 * * *"}, Keys: tweets,
			Source: mesh.Source{Loader: &mesh.Loader{URL: l.loader("?list=trending"), TokenFile: l.options.loaderToken()}}},
		{Name: "celebrity", Rule: &mesh.Rule{When: fmt.Sprintf(`event.type == "tweet.created" && event.author.followers > %d`, celebrityFollowers), Keys: tweet},
			Keys: tweets, Source: loader},
		{Name: "local-event", Rule: &mesh.Rule{When: `event.type == "tweet.created" && has(event.geo)`, Keys: tweet, Regions: "regions.near(event.geo)"},
			Keys: tweets, Source: loader},
		{Name: "return", OnReturn: true, Keys: tweets, Source: mesh.Source{Region: mesh.Nearest}},
	}}
}

// loader is where the example application says what a cache is to hold: any of them knows.
func (l *layout) loader(query string) string {
	return "http://" + l.regions[0].sidecars[0].app + "/internal/cache" + query
}

func (o Options) loaderToken() string { return filepath.Join(o.Dir, "loader-token") }

func (o Options) writeLoaderToken() error {
	return os.WriteFile(o.loaderToken(), []byte(rand.Text()+"\n"), 0o600)
}
