package source

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cachemesh/cachemesh/regions"
)

const (
	linkTimeout = 10 * time.Second
	// maxPage bounds a message of the link.
	maxPage = 32 << 20
)

// sibling is another region's cache.
type sibling struct {
	config Config
	region string
	pool   string
	prefix []byte
	page   uint32 // about how many keys are listed at once
	turn   atomic.Uint32

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by address
}

// client is one to an agent of the region, another each time.
func (s *sibling) client() (regions.LinkClient, error) {
	addresses := s.config.Links(s.region)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("no agent of region %q listens for others: start some with --link", s.region)
	}
	address := addresses[int(s.turn.Add(1))%len(addresses)]
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, c := range s.conns {
		if !slices.Contains(addresses, a) {
			c.Close()
			delete(s.conns, a)
		}
	}
	if s.conns[address] == nil {
		conn, err := s.config.Dial(s.region, address)
		if err != nil {
			return nil, err
		}
		s.conns[address] = conn
	}
	return regions.NewLinkClient(s.conns[address]), nil
}

func (s *sibling) hello() *regions.Hello {
	return &regions.Hello{Region: s.config.Region, Agent: s.config.Agent, Version: s.config.Version, To: s.region, Pool: s.pool}
}

func (s *sibling) List(ctx context.Context, cursor, until string) (Page, error) {
	began := time.Now()
	told, err := s.ask(ctx, func(ctx context.Context, c regions.LinkClient) (*regions.Page, error) {
		return c.List(ctx, &regions.ListRequest{Hello: s.hello(), Prefix: s.prefix, Cursor: cursor, Until: until, Keys: s.page}, grpc.MaxCallRecvMsgSize(maxPage))
	})
	if status.Code(err) == codes.NotFound && cursor != "" {
		return Page{Next: []string{""}}, nil // its shards are others now
	}
	if err != nil {
		return Page{}, err
	}
	p := Page{Next: told.GetNext(), Keys: told.GetKeys()}
	p.Batch, err = s.batch(told.GetItems(), began)
	return p, err
}

func (s *sibling) Fetch(ctx context.Context, keys [][]byte) (Batch, error) {
	began := time.Now()
	rest := keys[min(len(keys), regions.MaxFetch):]
	told, err := s.ask(ctx, func(ctx context.Context, c regions.LinkClient) (*regions.Page, error) {
		return c.Fetch(ctx, &regions.FetchRequest{Hello: s.hello(), Keys: keys[:len(keys)-len(rest)]}, grpc.MaxCallRecvMsgSize(maxPage))
	})
	if err != nil {
		return Batch{}, err
	}
	b, err := s.batch(told.GetItems(), began)
	b.Later = append(b.Later, rest...)
	return b, err
}

func (s *sibling) ask(ctx context.Context, f func(context.Context, regions.LinkClient) (*regions.Page, error)) (*regions.Page, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	p, err := f(ctx, c)
	switch status.Code(err) {
	case codes.InvalidArgument:
		return nil, fmt.Errorf("%w: region %q: %s", ErrKeys, s.region, status.Convert(err).Message())
	case codes.Unimplemented:
		return nil, fmt.Errorf("the agents of region %q are of a version that tells no values: upgrade them", s.region)
	case codes.OK, codes.NotFound:
		return p, err
	}
	return nil, fmt.Errorf("region %q: %s", s.region, status.Convert(err).Message())
}

// batch reads a page's items, whose bytes stay parts of it.
func (s *sibling) batch(page []byte, began time.Time) (Batch, error) {
	b := Batch{Began: began, Items: make([]Item, 0, 2048)}
	for len(page) > 0 {
		i, rest, err := regions.CutItem(page)
		if err != nil {
			return b, fmt.Errorf("%w: region %q: %w", ErrKeys, s.region, err)
		}
		page = rest
		switch {
		case !bytes.HasPrefix(i.Key, s.prefix):
			return b, fmt.Errorf("%w: region %q tells of a key that was not asked for", ErrKeys, s.region)
		case i.Kind == regions.ItemMissing:
			b.Missing++
		case i.Kind == regions.ItemLarge:
			b.Failed++
		case i.Kind == regions.ItemLater:
			b.Later = append(b.Later, i.Key)
		default:
			b.Items = append(b.Items, Item{Key: i.Key, Value: i.Value, TTL: i.TTL, Dump: i.Kind == regions.ItemDump})
		}
	}
	return b, nil
}

func (s *sibling) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
}
