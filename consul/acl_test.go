package consul_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/process"
)

// management is the token that a test's Consul starts with, which may do everything.
const management = "11111111-2222-3333-4444-555555555555"

func portOf(port int) string { return strconv.Itoa(port) }

// newToken makes an ACL token with one policy, as an operator would.
func newToken(t *testing.T, s process.Consul, rules string) string {
	t.Helper()
	put := func(path string, body any) (answer map[string]any) {
		t.Helper()
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.Address()+path, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Consul-Token", management)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(text, &answer) != nil {
			t.Fatalf("%s: %s %s %v", path, resp.Status, text, err)
		}
		return answer
	}
	name := "test-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	put("/v1/acl/policy", map[string]any{"Name": name, "Rules": rules})
	return put("/v1/acl/token", map[string]any{"Policies": []map[string]string{{"Name": name}}})["SecretID"].(string)
}
