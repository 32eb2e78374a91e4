package main

import "testing"

func TestCopyPeers(t *testing.T) {
	const keys = 2000
	peers, err := startWarmingPeers(t.Context(), t.TempDir(), keys, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer peers.stop()
	floor, err := peers.floor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	naive, err := peers.naive(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]copied{"redis-cli --pipe": floor, "GET and SET": naive} {
		if c.keys != keys || c.took <= 0 || c.loader <= 0 || c.target <= 0 {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if naive.cpu() < floor.cpu() {
		t.Errorf("one key after the other costs %s, all of them at once %s", naive.cpu(), floor.cpu())
	}
}
