// Package source reads what is to be loaded into shards, from where a plan says that it is: another region's cache over the link, the application's
// HTTP endpoint, a database, or a file.
//
// A source keeps no place: who lists gives back the cursor, so that any agent may go on. It retries nothing, but says of an error whether
// it is about these keys or about the source as a whole. What it reads is bounded, in bytes and in time, whatever it is sent.
// warming/load calls it.
package source

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/cachemesh/cachemesh/warming"
	"github.com/cachemesh/cachemesh/warming/place"
	"github.com/cachemesh/cachemesh/warming/workingset"
)

// Item is a key and its value.
type Item struct {
	Key, Value []byte
	TTL        time.Duration // 0 is for ever
	Dump       bool          // the value is what DUMP said
}

// Batch is what a source tells at once.
type Batch struct {
	Items   []Item
	Missing int      // keys under which there is nothing
	Failed  int      // keys whose values cannot be had
	Later   [][]byte // keys whose values are to be fetched
	Began   time.Time
}

// Page is a part of a list.
type Page struct {
	Batch
	Named [][]byte // keys without values, which whoever likes may fetch
	Next  []string // cursors from which the list goes on; none is that it is over
	Keys  uint64   // an estimate of all keys of the list; 0 is none
}

// Source tells values. Several goroutines may use it.
type Source interface {
	// List tells what follows a cursor, up to where until begins; "" is the beginning, and until may be "".
	List(ctx context.Context, cursor, until string) (Page, error)
	// Fetch tells what is under keys, or some of them: the rest is Later.
	Fetch(ctx context.Context, keys [][]byte) (Batch, error)
	Close()
}

// ErrKeys is about what was asked for: there is no sense in asking again and again. Any other error is about the source as a whole, for now.
var ErrKeys = errors.New("the source does not understand")

// Config is where an agent's sources are.
type Config struct {
	Region, Agent, Version string
	// Dial opens a connection to an agent of another region. It does not wait until there is one.
	Dial func(region, address string) (*grpc.ClientConn, error)
	// Links are where agents of another region listen.
	Links func(region string) []string
	// At says what the own region is like.
	At func() *place.Map
}

// pageKeys is how many keys a run lists at once: what its budget has for a moment, so that neither region is busy with many in a row, and not so few that
// to claim a chunk costs more than its keys.
func pageKeys(r *warming.Run) uint32 {
	return uint32(max(leastPage, min(mostPage, float64(r.Budget.KeysPerSecond)*pageTime.Seconds())))
}

const (
	leastPage = 100
	mostPage  = 8000
	pageTime  = 25 * time.Millisecond
)

// New makes a run's source.
func New(c Config, r *warming.Run) (Source, error) {
	prefix := []byte(r.Keys.Prefix)
	var s Source
	switch from := r.Source; {
	case from.Region != "":
		s = &sibling{config: c, region: from.Region, pool: r.Pool, prefix: prefix, page: pageKeys(r), conns: map[string]*grpc.ClientConn{}}
	case from.Loader != nil:
		s = newLoader(from.Loader.URL, from.Loader.TokenFile, r.Region, r.Keys.Prefix)
	case from.SQL != nil:
		return newDatabase(from.SQL, r.Keys.Prefix)
	case from.File != "":
		return &file{from.File, prefix}, nil
	default:
		return nil, errors.New("the run has a source that this version does not know: upgrade this agent")
	}
	switch {
	case r.Keys.File != "":
		s = &keyFile{s, r.Keys.File, prefix}
	case r.Keys.Hour != nil:
		s = &hour{s, c.At, r.Pool, workingset.Key(*r.Keys.Hour), prefix}
	}
	return s, nil
}
