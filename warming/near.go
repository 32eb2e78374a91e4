package warming

import (
	"math"

	"github.com/cachemesh/cachemesh/mesh"
)

// Near is the region that is nearest to a place. All regions have a location.
func Near(at mesh.Location, all []mesh.RegionSpec) (name string) {
	least := math.Inf(1)
	for _, r := range all {
		if d := distance(at, *r.Location); d < least {
			name, least = r.Name, d
		}
	}
	return name
}

// nearest is the region that is nearest to another: its only sibling, or by their locations.
func nearest(to mesh.RegionSpec, all []mesh.RegionSpec) string {
	var siblings []mesh.RegionSpec
	for _, r := range all {
		if r.Name != to.Name {
			siblings = append(siblings, r)
		}
	}
	if len(siblings) == 1 {
		return siblings[0].Name
	}
	return Near(*to.Location, siblings)
}

// distance is the angle between two places, in radians.
func distance(a, b mesh.Location) float64 {
	const degree = math.Pi / 180
	north := math.Sin((b.Latitude - a.Latitude) * degree / 2)
	east := math.Sin((b.Longitude - a.Longitude) * degree / 2)
	h := north*north + math.Cos(a.Latitude*degree)*math.Cos(b.Latitude*degree)*east*east
	return 2 * math.Asin(math.Min(1, math.Sqrt(h)))
}
