package deploy

import (
	"maps"
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
	if at := flagOf(c.Args, "advertise"); at != "https://$(POD_IP):18080" {
		t.Errorf("it advertises %s", at)
	}
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

// static are the values of a mesh whose file says which nodes there are.
func static(change map[string]any) map[string]any {
	values := map[string]any{"region": "us-east", "mesh": "apiVersion: cachemesh.dev/v1\n", "image": map[string]any{"tag": "v1"}}
	maps.Copy(values, change)
	return values
}

// The smallest values: one control plane, plaintext, and everything optional left out.
func TestChartWithoutOptions(t *testing.T) {
	text, notes, err := render(t, static(map[string]any{"networkPolicy": map[string]any{"enabled": false}}))
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, "controlplane.yaml", []byte(text))
	pod := checkControlplane(t, all)
	// What it decides is kept on a volume, and no second pod is ever beside it, as a Deployment's would be during an update.
	if len(all.deployments) != 0 || *all.statefulSets[0].Spec.Replicas != 1 {
		t.Errorf("%d Deployments beside the StatefulSet, which has %d pods", len(all.deployments), *all.statefulSets[0].Spec.Replicas)
	}
	if state := flagOf(pod.Containers[0].Args, "state"); !mounted(pod.Containers[0], state) {
		t.Errorf("--state=%s is on no volume", state)
	}
	if at := flagOf(pod.Containers[0].Args, "advertise"); at != "http://$(POD_IP):18080" {
		t.Errorf("it advertises %s", at)
	}
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
	template, selector, claims := workload(all)
	pod := template.Spec
	for _, claim := range claims {
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: claim.Name})
	}
	checkPod(t, "controlplane", template.Labels, selector, pod)
	c := pod.Containers[0]
	if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == "POD_IP" && e.ValueFrom != nil && e.ValueFrom.FieldRef.FieldPath == "status.podIP"
	}) {
		t.Errorf("it does not know the pod's address: %v", c.Env)
	}
	listens(t, c, "xds", "xds")
	listens(t, c, "http", "http")
	for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		switch {
		case hasFlag(c.Args, "http-client-auth"): // the kubelet has no certificate to show
			if probe.HTTPGet != nil || probe.TCPSocket == nil {
				t.Errorf("a probe that --http-client-auth refuses: %v", probe)
			}
		case (probe.HTTPGet.Scheme == corev1.URISchemeHTTPS) != hasFlag(c.Args, "tls-cert"):
			t.Errorf("a probe by %s", probe.HTTPGet.Scheme)
		}
	}
	service := all.services[0]
	if service.Spec.ClusterIP != corev1.ClusterIPNone {
		t.Errorf("the Service has the address %q: its name must resolve to every control plane", service.Spec.ClusterIP)
	}
	if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(template.Labels)) {
		t.Errorf("the Service selects %v", service.Spec.Selector)
	}
	for _, p := range service.Spec.Ports {
		if !hasPort(c, p.TargetPort) {
			t.Errorf("the Service's port %s goes to %s, which the pod does not have", p.Name, p.TargetPort.String())
		}
	}
	for _, selector := range budgetsAndPolicies(all) {
		if match, err := metav1.LabelSelectorAsSelector(&selector); err != nil || !match.Matches(labels.Set(template.Labels)) {
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

// workload is what the control planes' pods are made by.
func workload(all objects) (corev1.PodTemplateSpec, *metav1.LabelSelector, []corev1.PersistentVolumeClaim) {
	if len(all.deployments) > 0 {
		d := all.deployments[0]
		return d.Spec.Template, d.Spec.Selector, nil
	}
	s := all.statefulSets[0]
	return s.Spec.Template, s.Spec.Selector, s.Spec.VolumeClaimTemplates
}

// Two control planes that both manage, each with a state of its own, would promote different replicas.
func TestChartHasOneThatLeads(t *testing.T) {
	consul := "membership:\n  consul: {}\n"
	for name, c := range map[string]struct {
		mesh     string
		replicas any
		want     int // 0 is refused
	}{
		"static":               {"", nil, 1},
		"static, one":          {"", 1, 1},
		"static, two":          {"", 2, 0},
		"static, said so":      {"membership: {}\n", 2, 0},
		"static, empty":        {"membership:\n", 2, 0},
		"only auto":            {"membership: {auto: true}\n", 2, 0},
		"no consul":            {"membership: {consul: }\n", 2, 0},
		"a comment":            {"# membership: {consul: {}}\n", 2, 0},
		"Consul":               {consul, nil, 2},
		"Consul, one":          {consul, 1, 1},
		"Consul, three":        {consul, 3, 3},
		"Consul at an address": {"membership: {consul: {address: \"10.0.0.1:8500\"}}\n", 2, 2},
	} {
		change := map[string]any{"mesh": "apiVersion: cachemesh.dev/v1\n" + c.mesh}
		if c.replicas != nil {
			change["replicas"] = c.replicas
		}
		text, _, err := render(t, static(change))
		if c.want == 0 {
			if err == nil || !strings.Contains(err.Error(), "membership: {consul: {}}") || !strings.Contains(err.Error(), "replicas: 1") {
				t.Errorf("%s: error %v, want one that names both remedies", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		all := decode(t, "controlplane.yaml", []byte(text))
		checkControlplane(t, all)
		got := 0
		for _, d := range all.deployments {
			got += int(*d.Spec.Replicas)
		}
		for _, s := range all.statefulSets {
			got += int(*s.Spec.Replicas)
		}
		if got != c.want || (len(all.budgets) > 0) != (got > 1) {
			t.Errorf("%s: %d control planes and %d disruption budgets, want %d control planes", name, got, len(all.budgets), c.want)
		}
		if onVolume := len(all.statefulSets) == 1; onVolume != (c.mesh == "") {
			t.Errorf("%s: the state is on a volume: %v", name, onVolume)
		}
	}
}

// With client certificates for the API, what asks it has one, and the kubelet does not ask it.
func TestChartWithOperatorsCertificates(t *testing.T) {
	values := exampleValues(t)
	values["tls"].(map[string]any)["httpClientCertificates"] = true
	text, notes, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, "controlplane.yaml", []byte(text))
	if c := checkControlplane(t, all).Containers[0]; !hasFlag(c.Args, "http-client-auth") {
		t.Errorf("flags %v, want --http-client-auth", c.Args)
	}
	_, command, _ := strings.Cut(notes, "-- cachemesh ")
	command, _, _ = strings.Cut(command, "\n")
	accepted(t, "the notes", "cachemesh", strings.Fields(command))
	if !strings.Contains(command, "--tls-cert ") {
		t.Errorf("the notes name a command that is refused: %s", command)
	}
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
		"tls/clientCert":     func(v map[string]any) { v["tls"] = map[string]any{"secretName": "s", "httpClientCertificates": true} },
		"no YAML":            func(v map[string]any) { v["mesh"] = "membership: {" },
		"state/size":         func(v map[string]any) { v["state"] = map[string]any{"size": "much"} },
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
