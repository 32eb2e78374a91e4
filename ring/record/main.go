// Command record asks the real Envoy where keys go and writes its answers to ring/testdata, a file a case,
// which the tests of package ring must reproduce. It never imports package ring, so that what it writes is
// Envoy's word alone. Run it in the repository's root after an upgrade of Envoy or a change of cases:
//
//	go run ./ring/record
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
)

// Vector is a case with Envoy's answers: the host's name by key, the key in base64.
type Vector struct {
	Envoy string `json:"envoy"`
	Case
	// Fewest and most entries of a host in Envoy's ring or table.
	MinEntries int               `json:"min_entries"`
	MaxEntries int               `json:"max_entries"`
	Keys       map[string]string `json:"keys"`
}

func main() {
	dir := flag.String("dir", filepath.Join("ring", "testdata"), "folder for the recorded files")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) error {
	vectors, err := record(ctx, cases())
	if err != nil {
		return err
	}
	for _, v := range vectors {
		data, err := encode(v)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, v.Name+".json"), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func encode(v Vector) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", " ")
	return append(data, '\n'), err
}
