package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/process"
	"github.com/cachemesh/cachemesh/shards"
)

// storeProcess, in the environment, makes this program a process that keeps a store and does nothing else, so that tests can
// kill it and stop it.
const storeProcess = "CACHEMESH_TEST_STORE"

func TestMain(m *testing.M) {
	if spec := os.Getenv(storeProcess); spec != "" {
		fmt.Fprintln(os.Stderr, serveStore(spec))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// storeSpec is what such a process is told: a store in a folder, or in Consul.
type storeSpec struct {
	Listen, Dir, Consul string
}

// storeAnswer is what it tells.
type storeAnswer struct {
	Leads    bool
	Leader   string
	Revision uint64
	State    string
	Error    string
}

func (s storeSpec) open() (store, error) {
	url := "http://" + s.Listen
	if s.Consul == "" {
		return newFileStore(s.Dir, url), nil
	}
	return newConsulStore(consulStoreConfig{spec: mesh.ConsulSpec{Address: s.Consul}, datacenter: "east", region: "home", advertise: url, dir: s.Dir, terms: shards.DefaultTerms})
}

func serveStore(text string) error {
	var spec storeSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	s, err := spec.open()
	if err != nil {
		return err
	}
	go s.run(context.Background(), func() {})
	return http.ListenAndServe(spec.Listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer storeAnswer
		if r.Method == http.MethodPut {
			state, err := io.ReadAll(r.Body)
			revision, parseErr := strconv.ParseUint(r.URL.Query().Get("revision"), 10, 64)
			if err = errors.Join(err, parseErr); err == nil {
				_, err = s.write(r.Context(), state, revision)
			}
			if err != nil {
				answer.Error = err.Error()
			}
		}
		state, revision := s.read()
		answer.Leads, answer.Leader, answer.Revision, answer.State = time.Now().Before(s.leadsUntil()), s.leader(), revision, string(state)
		json.NewEncoder(w).Encode(answer)
	}))
}

// storeMember is one such process.
type storeMember struct {
	*process.Process
	t   *testing.T
	url string
}

func startStore(t *testing.T, spec storeSpec) storeMember {
	t.Helper()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	spec.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	m := storeMember{t: t, url: "http://" + spec.Listen}
	m.Process, err = process.Start(t.Context(), process.Spec{Name: "store", Path: os.Args[0], Env: []string{storeProcess + "=" + string(text)},
		Ready: func(ctx context.Context, _ int) error { _, err := m.get(); return err }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m
}

func (m storeMember) get() (answer storeAnswer, err error) {
	resp, err := http.Get(m.url)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

// now is what the process says; nothing while it cannot.
func (m storeMember) now() storeAnswer {
	answer, _ := m.get()
	return answer
}

func (m storeMember) put(state string, revision uint64) storeAnswer {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodPut, m.url+"?revision="+strconv.FormatUint(revision, 10), bytes.NewReader([]byte(state)))
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer storeAnswer
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		m.t.Fatal(err)
	}
	return answer
}

// runStore runs a store in this process; the function ends it, and so does the test's end. The channel has a token after a change.
func runStore(t *testing.T, s store) (changes <-chan struct{}, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done, changed := make(chan struct{}), make(chan struct{}, 1)
	go func() {
		defer close(done)
		if err := s.run(ctx, func() { signal(changed) }); !errors.Is(err, context.Canceled) {
			t.Errorf("run ended: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return changed, stop
}

// until waits for ok, looking again whenever the store says that something changed.
func until(t *testing.T, changes <-chan struct{}, what string, s store, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for !ok() {
		select {
		case <-changes:
		case <-deadline:
			state, revision := s.read()
			t.Fatalf("waited 60 s: %s; revision %d: %s, leads until %s, leader %q, problem %v", what, revision, state, s.leadsUntil(), s.leader(), s.problem())
		}
	}
}

func leads(s store) func() bool { return func() bool { return time.Now().Before(s.leadsUntil()) } }

func hasState(s store, want string, revision uint64) func() bool {
	return func() bool {
		state, r := s.read()
		return string(state) == want && r == revision
	}
}

func mustWrite(t *testing.T, s store, state string, revision uint64) {
	t.Helper()
	got, err := s.write(t.Context(), []byte(state), revision)
	if err != nil || got != revision+1 || !hasState(s, state, revision+1)() {
		t.Fatalf("write after revision %d: %d, %v", revision, got, err)
	}
}
