package envoy

import "testing"

// The bootstrap that the README gives to an Envoy without an agent is one that Bootstrap makes.
func TestTheExampleForAnEnvoyAlone(t *testing.T) {
	got, err := Bootstrap(BootstrapConfig{
		ID: "envoy-alone", Region: "home", XDS: "127.0.0.1:18000", Admin: "127.0.0.1:9901",
		Metadata: map[string]string{"redis": "127.0.0.1:6379", "redis_resp3": "127.0.0.1:6380"},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "../examples/envoy-alone.json", got)
}
