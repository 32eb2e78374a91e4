package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/ring"
)

// place is where a key lives: an element of what `where -o json` prints.
type place struct {
	Key       string `json:"key"`
	KeyBase64 string `json:"key_base64,omitempty"` // only where the key is not UTF-8
	Region    string `json:"region,omitempty"`
	Pool      string `json:"pool,omitempty"`
	Route     string `json:"route"`
	Shard     string `json:"shard,omitempty"`
	Primary   string `json:"primary,omitempty"`

	hash   uint64
	tagged bool
}

// noPlace is a key that no shard takes.
type noPlace struct {
	Key       string `json:"key"`
	KeyBase64 string `json:"key_base64,omitempty"`
	Error     string `json:"error"`
}

// maxKeyBytes is Redis's own limit.
const maxKeyBytes = 512 << 20

func newWhere() *cobra.Command {
	var out output
	var from meshFlags
	var region, file string
	var nul bool
	cmd := &cobra.Command{
		Use:   "where KEY...",
		Short: "Say which shard a key lives on, and why",
		Long: `Say which pool, shard and primary a key lives on, and why. Without arguments the keys come from standard input, one a
line, or separated by NUL with -0.`,
		Example: `  cachemesh where timeline:42
  cachemesh where --region eu-west -o json tweet:1 tweet:2
  redis-cli --scan | cachemesh where -o json
  cachemesh where --file mesh.yaml timeline:42   # without a running mesh`,
		Args: args(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys := make([][]byte, len(args))
			for i, a := range args {
				keys[i] = []byte(a)
			}
			if len(keys) == 0 {
				var err error
				if keys, err = readKeys(cmd.InOrStdin(), nul); err != nil {
					return err
				}
			}
			topology, err := whereTopology(cmd, from, file, region)
			if err != nil {
				return err
			}
			return printPlaces(cmd, out, topology, keys)
		},
	}
	out.register(cmd)
	from.register(cmd)
	cmd.Flags().StringVar(&region, "region", "", "region to look in (default: the first)")
	cmd.Flags().StringVar(&file, "file", "", "a mesh.yaml to ask instead of a running mesh")
	cmd.Flags().BoolVarP(&nul, "null", "0", false, "keys on standard input are separated by NUL, not by line ends")
	cmd.MarkFlagFilename("file", "yaml", "yml")
	return cmd
}

func whereTopology(cmd *cobra.Command, from meshFlags, file, region string) (mesh.Topology, error) {
	if file == "" {
		return from.topologyOf(cmd.Context(), region)
	}
	data, err := readFile(cmd.InOrStdin(), file)
	if err != nil {
		return mesh.Topology{}, err
	}
	m, err := mesh.Load(file, data)
	if err != nil {
		return mesh.Topology{}, err
	}
	if region == "" {
		region = m.Regions[0].Name
	}
	if _, known := m.Region(region); !known {
		return mesh.Topology{}, usage("there is no region %q: the mesh has %s", region, strings.Join(m.RegionNames(), ", "))
	}
	if m.Membership.Auto {
		return mesh.Topology{}, usage("%s does not say which shards there are, with membership.auto: ask a running mesh", file)
	}
	return m.Topology(region)
}

// readKeys splits what comes on standard input. An empty line is the empty key's only way in, so a last line end adds none.
func readKeys(r io.Reader, nul bool) ([][]byte, error) {
	end := byte('\n')
	if nul {
		end = 0
	}
	var keys [][]byte
	reader := bufio.NewReader(r)
	for {
		key, err := reader.ReadBytes(end)
		if errors.Is(err, io.EOF) {
			if len(key) > 0 {
				keys = append(keys, key)
			}
			return keys, nil
		}
		if err != nil {
			return nil, err
		}
		if len(key) > maxKeyBytes {
			return nil, fmt.Errorf("key %d is longer than the 512 MB that Redis takes", len(keys)+1)
		}
		keys = append(keys, key[:len(key)-1])
	}
}

// locator answers where keys of a topology live. It holds a ring for each pool.
type locator struct {
	topology mesh.Topology
	rings    map[string]*ring.Ring
}

func newLocator(t mesh.Topology) (*locator, error) {
	l := &locator{topology: t, rings: map[string]*ring.Ring{}}
	for _, p := range t.Pools {
		r, err := envoy.Ring(p)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", p.Name, err)
		}
		l.rings[p.Name] = r
	}
	return l, nil
}

func (l *locator) locate(key []byte) (place, error) {
	pool, route, err := l.topology.Route(key)
	if err != nil {
		return place{}, err
	}
	hash := ring.Hash(key)
	shard := pool.Shards[l.rings[pool.Name].Lookup(hash)]
	primary, ok := shard.Primary()
	if !ok {
		return place{}, fmt.Errorf("shard %s has no primary: see `cachemesh status`", shard.Name)
	}
	p := place{Region: l.topology.Region, Pool: pool.Name, Route: route.Prefix, Shard: shard.Name, Primary: primary.Address,
		hash: hash, tagged: !bytes.Equal(ring.Tag(key), key)}
	p.Key, p.KeyBase64 = keyText(key)
	return p, nil
}

// keyText is a key as JSON can carry it, and in base64 where that loses something.
func keyText(key []byte) (text, encoded string) {
	if utf8.Valid(key) {
		return string(key), ""
	}
	return string(bytes.ToValidUTF8(key, []byte("\ufffd"))), base64.StdEncoding.EncodeToString(key)
}

func printPlaces(cmd *cobra.Command, out output, t mesh.Topology, keys [][]byte) error {
	l, err := newLocator(t)
	if err != nil {
		return err
	}
	found := make([]any, 0, len(keys))
	failed := 0
	for _, key := range keys {
		p, err := l.locate(key)
		if err == nil {
			found = append(found, p)
			continue
		}
		failed++
		n := noPlace{Error: err.Error()}
		n.Key, n.KeyBase64 = keyText(key)
		found = append(found, n)
	}
	err = out.print(cmd.OutOrStdout(), found, func(w io.Writer) { printPlaceTable(w, cmd.ErrOrStderr(), found) })
	if err == nil && failed > 0 {
		return errReported
	}
	return err
}

func printPlaceTable(w, notes io.Writer, found []any) {
	t := newTable(w, "key", "region", "pool", "shard", "primary", "why")
	for _, f := range found {
		switch f := f.(type) {
		case place:
			why := fmt.Sprintf("prefix %s, hash %016x", prefixText(f.Route), f.hash)
			if f.tagged {
				why += " of its {tag}"
			}
			t.AppendRow([]any{fmt.Sprintf("%q", f.Key), f.Region, f.Pool, f.Shard, f.Primary, why})
		case noPlace:
			fmt.Fprintf(notes, "error: %q: %s\n", f.Key, f.Error)
		}
	}
	if t.Length() > 0 {
		t.Render()
	}
}
