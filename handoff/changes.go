package handoff

import (
	"fmt"
	"sync"
)

// maxChanges bounds the keys that wait. They are many if a recipient or a donor takes much less than applications write.
const maxChanges = 1 << 20

// changes are keys that something is to be done about, each once however often it changes meanwhile.
type changes struct {
	mu   sync.Mutex
	keys map[string]struct{}
	some chan struct{} // has a token while there may be keys
}

func newChanges(some chan struct{}) *changes {
	return &changes{keys: map[string]struct{}{}, some: some}
}

// add says why it has no room.
func (c *changes) add(key []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.keys[string(key)]; known {
		return nil
	}
	if len(c.keys) >= maxChanges {
		return fmt.Errorf("%d keys changed and wait to be copied or removed: it takes no more", maxChanges)
	}
	c.keys[string(key)] = struct{}{}
	select {
	case c.some <- struct{}{}:
	default:
	}
	return nil
}

// drop forgets a key that is about to be looked at.
func (c *changes) drop(key []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, string(key))
}

func (c *changes) has(key []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, is := c.keys[string(key)]
	return is
}

// take takes out some keys.
func (c *changes) take(most int) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys := make([][]byte, 0, min(most, len(c.keys)))
	for k := range c.keys {
		if len(keys) == most {
			break
		}
		keys = append(keys, []byte(k))
		delete(c.keys, k)
	}
	return keys
}

func (c *changes) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.keys)
}
