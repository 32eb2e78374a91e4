package controlplane

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

const (
	// stateFile is in the folder of --state.
	stateFile = "state.json"
	// maxState bounds what is unpacked.
	maxState = 64 << 20
)

// record is a state as it is kept: in a file, and in Consul.
type record struct {
	// Revision grows by one with each write, and on from there when a state that was lost is written again.
	Revision uint64          `json:"revision"`
	By       string          `json:"by,omitempty"` // Consul session of the leader that wrote it
	Sum      string          `json:"sha256"`       // of State without spaces
	State    json.RawMessage `json:"state"`
}

func newRecord(state []byte, revision uint64, by string) (record, error) {
	compact, err := json.Marshal(json.RawMessage(state))
	if err != nil {
		return record{}, fmt.Errorf("the state is not JSON: %w", err)
	}
	return record{Revision: revision, By: by, Sum: checksum(compact), State: compact}, nil
}

func parseRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	compact, err := json.Marshal(r.State)
	if err != nil {
		return record{}, err
	}
	if r.Revision == 0 || r.Sum != checksum(compact) {
		return record{}, errors.New("its checksum is not that of its state: it was damaged or edited")
	}
	r.State = compact
	return r, nil
}

func checksum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// pack is a record as Consul holds it: compressed, since it takes half a megabyte at most.
func (r record) pack() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err = w.Write(data); err == nil {
		err = w.Close()
	}
	return packed.Bytes(), err
}

func unpack(packed []byte) (record, error) {
	reader, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return record{}, err
	}
	data, err := io.ReadAll(io.LimitReader(reader, maxState))
	if err != nil {
		return record{}, err
	}
	return parseRecord(data)
}

// save writes a record so that a crash of the machine leaves the old one or the new one.
func (r record) save(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
