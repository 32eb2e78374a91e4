package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// linked waits until what an application changes in one region gets to the others.
func (d *Demo) linked(ctx context.Context) error {
	if !d.layout.options.Coherent {
		return nil
	}
	for _, r := range d.layout.regions {
		for {
			err := d.linksUp(ctx, d.layout.url(r)+"/v1/regions")
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("what %s writes does not get to the other regions: %w", r.name, err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

func (d *Demo) linksUp(ctx context.Context, page string) error {
	var status struct {
		Links []struct{ From, To, Pool, State, Problem string }
	}
	if err := d.read(ctx, page, func(r io.Reader) error { return json.NewDecoder(r).Decode(&status) }); err != nil {
		return err
	}
	if len(status.Links) == 0 {
		return errors.New("no links are known yet")
	}
	for _, l := range status.Links {
		if l.State != "up" {
			return fmt.Errorf("pool %s, from %s to %s: %s %s", l.Pool, l.From, l.To, l.State, l.Problem)
		}
	}
	return nil
}
