package consul

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func TestNextIndexStartsOverWhenConsulDid(t *testing.T) {
	for _, c := range []struct{ last, got, want uint64 }{{0, 7, 7}, {7, 7, 7}, {7, 9, 9}, {9, 3, 0}, {9, 0, 0}} {
		if next := nextIndex(c.last, c.got); next != c.want {
			t.Errorf("after %d came %d: wait upon %d, want %d", c.last, c.got, next, c.want)
		}
	}
}

func TestAnswersThatAreNotTheCatalogue(t *testing.T) {
	for name, c := range map[string]struct {
		meta api.QueryMeta
		want string
	}{
		"fresh":     {api.QueryMeta{KnownLeader: true, LastContact: time.Second}, ""},
		"no leader": {api.QueryMeta{}, "no leader"},
		"stale":     {api.QueryMeta{KnownLeader: true, LastContact: time.Minute}, "1m0s"},
		"filtered":  {api.QueryMeta{KnownLeader: true, ResultsFilteredByACLs: true}, "service:read"},
	} {
		err := usable(&c.meta)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

func TestAnAddressIsJoinedAsItWasRegistered(t *testing.T) {
	for want, c := range map[string]struct {
		host string
		port int
	}{
		"10.0.0.1:6379": {"10.0.0.1", 6379}, "[::1]:6379": {"::1", 6379}, "redis.example:6379": {"redis.example", 6379}, "10.0.0.1:0": {"10.0.0.1", 0},
	} {
		if got := address(c.host, c.port); got != want {
			t.Errorf("address %q, want %q", got, want)
		}
	}
}
