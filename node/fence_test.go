package node_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/node"
	"github.com/cachemesh/cachemesh/process"
)

// writer connects as a lane of a login does.
func (s *server) writer(t *testing.T, login uint64) *redis.Conn {
	t.Helper()
	client := redis.NewClient(node.Options(s.Address(), nil, 5_000_000_000))
	t.Cleanup(func() { client.Close() })
	conn := client.Conn()
	if err := conn.ClientSetName(t.Context(), node.LoginName(login)).Err(); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestFenceEndsEarlierLogins(t *testing.T) {
	s := start(t, process.Redis{}, nil)
	late, other, current := s.writer(t, 1), s.writer(t, 0), s.writer(t, 2)
	plain := redis.NewClient(node.Options(s.Address(), nil, 5_000_000_000)).Conn()
	defer plain.Close()
	for _, login := range []uint64{2, 2, 1} { // an earlier one that comes late changes nothing
		if err := s.Fence(t.Context(), login); err != nil {
			t.Fatal(err)
		}
	}
	for name, conn := range map[string]*redis.Conn{"1": late, "0": other} {
		if err := conn.Set(t.Context(), "k", name, 0).Err(); err == nil {
			t.Errorf("a writer with login %s still writes", name)
		}
	}
	for name, conn := range map[string]*redis.Conn{"of the login": current, "that is no writer": plain} {
		if err := conn.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Errorf("a connection %s: %v", name, err)
		}
	}
	least := plain.Get(t.Context(), node.LoginKey).Val()
	if least != "2" || node.Fenced(1, least) == nil || node.Fenced(2, least) != nil || node.Fenced(0, "") != nil {
		t.Errorf("the node wants login %q", least)
	}
}

func TestFenceOfAFullNode(t *testing.T) {
	s := start(t, process.Redis{Args: []string{"--maxmemory", "1", "--maxmemory-policy", "noeviction"}}, nil)
	if err := s.Fence(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
}
