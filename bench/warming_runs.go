package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cachemesh/cachemesh/warming"
)

// warmRun is a run of a warming plan, as a control plane tells of it.
type warmRun struct {
	warming.Record
	Useful *float64 `json:"useful_ratio"`
	Saved  uint64   `json:"origin_reads_saved"`
}

// warmRuns are the runs of a region, newest first.
func warmRuns(ctx context.Context, controlplane string) ([]warmRun, error) {
	body, err := ask(ctx, controlplane, "/v1/warming/runs")
	if err != nil {
		return nil, fmt.Errorf("runs of warming: %w", err)
	}
	var answer struct{ Runs []warmRun }
	return answer.Runs, json.Unmarshal(body, &answer)
}

func findRun(ctx context.Context, controlplane, id string) (warmRun, error) {
	runs, err := warmRuns(ctx, controlplane)
	if err != nil {
		return warmRun{}, err
	}
	for _, r := range runs {
		if r.ID == id {
			return r, nil
		}
	}
	return warmRun{}, fmt.Errorf("the control plane knows no run %s", id)
}

// startWarming begins a plan, and returns its run's ID once the control plane tells of it.
func startWarming(ctx context.Context, controlplane, plan string) (string, error) {
	body, err := command(ctx, controlplane, "/v1/warming/plans/"+plan+"/run", struct{}{})
	if err != nil {
		return "", err
	}
	var r warmRun
	if err := json.Unmarshal(body, &r); err != nil {
		return "", err
	}
	return r.ID, eventually(ctx, "a run that has begun", func(ctx context.Context) error {
		_, err := findRun(ctx, controlplane, r.ID)
		return err
	})
}

// steerWarming pauses, resumes or cancels a run.
func steerWarming(ctx context.Context, controlplane, run, verb string) error {
	_, err := command(ctx, controlplane, "/v1/warming/runs/"+run+"/"+verb, struct{}{})
	return err
}

// endOfWarming waits until the run is over, and it must be done.
func endOfWarming(ctx context.Context, controlplane, id string) (warmRun, error) {
	for {
		r, err := findRun(ctx, controlplane, id)
		if err != nil {
			return r, err
		}
		if r.State.Over() {
			if r.State != warming.Done {
				err = fmt.Errorf("run %s is %s: %s", id, r.State, r.Problem)
			}
			return r, err
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return r, fmt.Errorf("run %s is %s with %+v: %w", id, r.State, r.Counts, err)
		}
	}
}

// command tells a control plane to do something.
func command(ctx context.Context, controlplane, path string, order any) ([]byte, error) {
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+controlplane+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("POST %s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}
