package test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestInject(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: app}\nspec:\n  containers:\n  - name: app # the application\n    image: app:v1\n"
	inject := func(stdin string, args ...string) result {
		return invocation{args: append([]string{"inject"}, args...), stdin: stdin}.run(t)
	}
	where := []string{"-f", "-", "--region", "here", "--controlplane", "a:18000,b:18000"}
	r := inject(pod, where...).want(t, 0)
	for _, want := range []string{"- name: app # the application\n", `"--controlplane=a:18000,b:18000"`, "image: \"cachemesh:dev\"\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("the manifest lacks %q:\n%s", want, r.stdout)
		}
	}
	if again := inject(r.stdout, where...).want(t, 0); again.stdout != r.stdout {
		t.Errorf("injecting again changes something:\n%s", again.stdout)
	}
	if r := inject("kind: Service\n", where...).want(t, 1); r.stdout != "" || !strings.Contains(r.stderr, "nothing to inject") {
		t.Errorf("output %q and error %q, want an error alone", r.stdout, r.stderr)
	}
	for want, args := range map[string][]string{
		"-f is missing":             {"--region", "here", "--controlplane", "a:1"},
		"--region is missing":       {"-f", "-", "--controlplane", "a:1"},
		"--controlplane is missing": {"-f", "-", "--region", "here"},
	} {
		if r := inject(pod, args...).want(t, 2); !strings.Contains(r.stderr, want) {
			t.Errorf("error %q, want %q in it", r.stderr, want)
		}
	}
}

func TestHealth(t *testing.T) {
	var code atomic.Int64
	code.Store(http.StatusOK)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(code.Load()))
		io.WriteString(w, "no Envoy runs")
	}))
	defer server.Close()
	cachemesh(t, "health", server.URL+"/readyz").want(t, 0)
	code.Store(http.StatusServiceUnavailable)
	if r := cachemesh(t, "health", server.URL+"/readyz").want(t, 1); !strings.Contains(r.stderr, "no Envoy runs") {
		t.Errorf("error %q, want the reason in it", r.stderr)
	}
	server.Close()
	cachemesh(t, "health", server.URL+"/readyz").want(t, 1)
	cachemesh(t, "health", "localhost").want(t, 2)
	cachemesh(t, "health").want(t, 2)
}
