package deploy

import (
	"path"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// render is `helm template cachemesh deploy/helm/cachemesh --namespace cachemesh` with these values.
func render(t *testing.T, values map[string]any) (manifests, notes string, err error) {
	t.Helper()
	chart, err := loader.Load("helm/cachemesh")
	if err != nil {
		t.Fatal(err)
	}
	if err := chart.Validate(); err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "cachemesh", Namespace: "cachemesh", IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return "", "", err
	}
	for name, text := range files {
		switch path.Ext(name) {
		case ".yaml":
			manifests += text
		case ".txt":
			notes += text
		}
	}
	return manifests, notes, nil
}

func exampleValues(t *testing.T) map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(read(t, examples+"/values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	values["mesh"] = string(read(t, examples+"/mesh.yaml"))
	return values
}

// The example is what the chart makes of its values.
func TestChartOfTheExample(t *testing.T) {
	text, notes, err := render(t, exampleValues(t))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, examples+"/controlplane.yaml", []byte("# What deploy/helm/cachemesh makes of values.yaml and mesh.yaml.\n"+text))
	if strings.Contains(notes, "plaintext") {
		t.Errorf("with TLS the notes say:\n%s", notes)
	}
	all := decode(t, "controlplane.yaml", []byte(text))
	pod := checkControlplane(t, all)
	c := pod.Containers[0]
	for _, flag := range []string{"config", "state", "tls-cert", "tls-key", "tls-client-ca"} {
		if file := flagOf(c.Args, flag); !mounted(c, file) {
			t.Errorf("--%s=%s is on no volume", flag, file)
		}
	}
	if hasFlag(c.Args, "insecure") {
		t.Error("--insecure beside TLS")
	}
	if *all.deployments[0].Spec.Replicas != 2 || len(all.budgets) != 1 {
		t.Error("want two control planes and a disruption budget for them")
	}
	if strings.TrimSpace(all.configMaps[0].Data["mesh.yaml"]) != strings.TrimSpace(string(read(t, examples+"/mesh.yaml"))) {
		t.Errorf("the mesh.yaml is not as it was given:\n%s", all.configMaps[0].Data["mesh.yaml"])
	}
}

// The smallest values: one control plane, plaintext, and everything optional left out.
func TestChartWithoutOptions(t *testing.T) {
	text, notes, err := render(t, map[string]any{
		"region": "us-east", "mesh": "apiVersion: cachemesh.dev/v1\n", "replicas": 1, "image": map[string]any{"tag": "v1"},
		"networkPolicy": map[string]any{"enabled": false},
	})
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, "controlplane.yaml", []byte(text))
	pod := checkControlplane(t, all)
	if !hasFlag(pod.Containers[0].Args, "insecure") || pod.Containers[0].ReadinessProbe.HTTPGet.Scheme != corev1.URISchemeHTTP {
		t.Error("without TLS, --insecure and probes by HTTP are needed")
	}
	// A budget for one pod would keep its node from being drained.
	if len(all.budgets) != 0 || len(all.policies) != 0 {
		t.Errorf("%d disruption budgets and %d network policies, want none", len(all.budgets), len(all.policies))
	}
	if !strings.Contains(notes, "plaintext") {
		t.Errorf("the notes do not warn of plaintext:\n%s", notes)
	}
}

// checkControlplane checks what holds whatever the values, and returns the control plane's pod.
func checkControlplane(t *testing.T, all objects) corev1.PodSpec {
	t.Helper()
	deployment := all.deployments[0]
	pod := deployment.Spec.Template.Spec
	checkPod(t, "controlplane", deployment.Spec.Template.Labels, deployment.Spec.Selector, pod)
	c := pod.Containers[0]
	listens(t, c, "xds", "xds")
	listens(t, c, "http", "http")
	if tls := c.ReadinessProbe.HTTPGet.Scheme == corev1.URISchemeHTTPS; tls != hasFlag(c.Args, "tls-cert") {
		t.Errorf("probes by %s", c.ReadinessProbe.HTTPGet.Scheme)
	}
	service := all.services[0]
	if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(deployment.Spec.Template.Labels)) {
		t.Errorf("the Service selects %v", service.Spec.Selector)
	}
	for _, p := range service.Spec.Ports {
		if !hasPort(c, p.TargetPort) {
			t.Errorf("the Service's port %s goes to %s, which the pod does not have", p.Name, p.TargetPort.String())
		}
	}
	for _, selector := range budgetsAndPolicies(all) {
		if match, err := metav1.LabelSelectorAsSelector(&selector); err != nil || !match.Matches(labels.Set(deployment.Spec.Template.Labels)) {
			t.Errorf("%v does not select the control planes (%v)", selector, err)
		}
	}
	for _, policy := range all.policies {
		for _, rule := range policy.Spec.Ingress {
			if len(rule.From) == 0 || !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == rule.Ports[0].Port.String() }) {
				t.Errorf("the NetworkPolicy's rule %+v lets everybody in, or to a port that is not there", rule)
			}
		}
	}
	return pod
}

func budgetsAndPolicies(all objects) (selectors []metav1.LabelSelector) {
	for _, b := range all.budgets {
		selectors = append(selectors, *b.Spec.Selector)
	}
	for _, p := range all.policies {
		selectors = append(selectors, p.Spec.PodSelector)
	}
	return selectors
}

func TestChartRefusesBadValues(t *testing.T) {
	for want, change := range map[string]func(map[string]any){
		"region":             func(v map[string]any) { v["region"] = "US" },
		"mesh":               func(v map[string]any) { v["mesh"] = "" },
		"replicas":           func(v map[string]any) { v["replicas"] = 0 },
		"replcas":            func(v map[string]any) { v["replcas"] = 2 },
		"tls":                func(v map[string]any) { v["tls"] = map[string]any{"clientCertificates": true} },
		"/files":             func(v map[string]any) { v["files"] = map[string]any{"/x": map[string]any{}} },
		"relative":           func(v map[string]any) { v["files"] = map[string]any{"relative": map[string]any{"secret": "a"}} },
		"image/pullPolicy":   func(v map[string]any) { v["image"] = map[string]any{"pullPolicy": "Sometimes"} },
		"networkPolicy/http": func(v map[string]any) { v["networkPolicy"] = map[string]any{"httpFrom": "all"} },
	} {
		values := exampleValues(t)
		change(values)
		if _, _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s", err, want)
		}
	}
}

// The example's certificate is the Secret that the chart mounts, for the name under which sidecars find the control planes.
func TestExampleCertificate(t *testing.T) {
	text, _, err := render(t, exampleValues(t))
	if err != nil {
		t.Fatal(err)
	}
	service := decode(t, "controlplane.yaml", []byte(text)).services[0]
	app := decode(t, "app.injected.yaml", read(t, examples+"/app.injected.yaml")).deployments[0]
	host, port, _ := strings.Cut(flagOf(app.Spec.Template.Spec.InitContainers[0].Args, "controlplane"), ":")
	if want := service.Name + "." + service.Namespace; host != want || port != "18000" {
		t.Errorf("sidecars look for control planes at %s:%s, want %s", host, port, want)
	}
	found := false
	for _, document := range strings.Split(string(read(t, examples+"/certificates.yaml")), "\n---\n") {
		var c struct {
			Spec struct {
				SecretName string
				DNSNames   []string `json:"dnsNames"`
			}
		}
		if err := yaml.Unmarshal([]byte(document), &c); err != nil {
			t.Fatal(err)
		}
		if c.Spec.SecretName == exampleValues(t)["tls"].(map[string]any)["secretName"] {
			found = slices.Contains(c.Spec.DNSNames, host)
		}
	}
	if !found {
		t.Errorf("no certificate of certificates.yaml is for %s", host)
	}
}
