package source

import (
	"encoding/base64"
	"fmt"
	"time"

	"github.com/cachemesh/cachemesh/regions"
)

// MaxValue bounds a value, in bytes, as other regions do.
const MaxValue = regions.MaxValue

// maxTTL is longer than anything is cached for.
const maxTTL = 10 * 365 * 24 * time.Hour

// entry is an item as JSON, see docs/loader.md.
type entry struct {
	Key    *string `json:"key"`
	Value  *string `json:"value"`
	TTL    int64   `json:"ttlMs"`
	Base64 bool    `json:"base64"`
}

// add adds the item to a batch. A value that is too large is one that cannot be had.
func (e *entry) add(b *Batch) error {
	if e.Key == nil || *e.Key == "" || e.Value == nil {
		return fmt.Errorf(`an entry has no "key" or no "value"`)
	}
	value := []byte(*e.Value)
	if e.Base64 {
		var err error
		if value, err = base64.StdEncoding.DecodeString(*e.Value); err != nil {
			return fmt.Errorf("the value of key %.100q is not base64: %w", *e.Key, err)
		}
	}
	switch ttl := time.Duration(e.TTL) * time.Millisecond; {
	case e.TTL < 0 || e.TTL > maxTTL.Milliseconds():
		return fmt.Errorf("key %.100q has a ttlMs of %d", *e.Key, e.TTL)
	case len(value) > MaxValue:
		b.Failed++
	default:
		b.Items = append(b.Items, Item{Key: []byte(*e.Key), Value: value, TTL: ttl})
	}
	return nil
}
