package deploy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	kyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const examples = root + "/examples/kubernetes"

// objects are what manifests hold, each decoded strictly into Kubernetes' own type: a field that the type lacks is an error.
type objects struct {
	deployments  []appsv1.Deployment
	statefulSets []appsv1.StatefulSet
	services     []corev1.Service
	configMaps   []corev1.ConfigMap
	budgets      []policyv1.PodDisruptionBudget
	policies     []networkingv1.NetworkPolicy
}

func decode(t *testing.T, name string, data []byte) objects {
	t.Helper()
	var all objects
	documents := kyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(data)))
	defer documents.Close()
	buffer := make([]byte, 1<<20)
	for {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(buffer[:n], &kind); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch kind.APIVersion + " " + kind.Kind {
		case "apps/v1 Deployment":
			all.deployments = append(all.deployments, strict[appsv1.Deployment](t, name, buffer[:n]))
		case "apps/v1 StatefulSet":
			all.statefulSets = append(all.statefulSets, strict[appsv1.StatefulSet](t, name, buffer[:n]))
		case "v1 Service":
			all.services = append(all.services, strict[corev1.Service](t, name, buffer[:n]))
		case "v1 ConfigMap":
			all.configMaps = append(all.configMaps, strict[corev1.ConfigMap](t, name, buffer[:n]))
		case "policy/v1 PodDisruptionBudget":
			all.budgets = append(all.budgets, strict[policyv1.PodDisruptionBudget](t, name, buffer[:n]))
		case "networking.k8s.io/v1 NetworkPolicy":
			all.policies = append(all.policies, strict[networkingv1.NetworkPolicy](t, name, buffer[:n]))
		default:
			t.Errorf("%s: a %q of %q, which is not expected", name, kind.Kind, kind.APIVersion)
		}
	}
}

func strict[T any](t *testing.T, name string, data []byte) (object T) {
	t.Helper()
	if err := yaml.UnmarshalStrict(data, &object); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	return object
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkPod holds a pod against what is promised of all of ours, and its commands against the programs.
func checkPod(t *testing.T, who string, labelled map[string]string, selector *metav1.LabelSelector, pod corev1.PodSpec) {
	t.Helper()
	match, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil || match.Empty() || !match.Matches(labels.Set(labelled)) {
		t.Errorf("%s: the selector %v does not select its pods %v (%v)", who, selector, labelled, err)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Errorf("%s: the pod gets a token of the Kubernetes API", who)
	}
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: the pod's securityContext lacks runAsNonRoot or seccompProfile RuntimeDefault", who)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		if volumes[v.Name] {
			t.Errorf("%s: two volumes are named %s", who, v.Name)
		}
		volumes[v.Name] = false
	}
	ports := map[string]bool{}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		checkContainer(t, who+"/"+c.Name, c)
		for _, m := range c.VolumeMounts {
			if _, there := volumes[m.Name]; !there {
				t.Errorf("%s/%s mounts the volume %s, which is not there", who, c.Name, m.Name)
			}
			volumes[m.Name] = true
		}
		for _, p := range c.Ports {
			if ports[p.Name] {
				t.Errorf("%s: two ports are named %s", who, p.Name)
			}
			ports[p.Name] = true
		}
	}
	for name, used := range volumes {
		if !used {
			t.Errorf("%s: nothing mounts the volume %s", who, name)
		}
	}
}

func checkContainer(t *testing.T, who string, c corev1.Container) {
	t.Helper()
	checkImage(t, who, c.Image)
	s := c.SecurityContext
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
		s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s: the securityContext lacks something: %+v", who, s)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("%s requests no CPU or memory", who)
	}
	for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		switch {
		case probe == nil:
		case probe.HTTPGet != nil && !hasPort(c, probe.HTTPGet.Port), probe.TCPSocket != nil && !hasPort(c, probe.TCPSocket.Port):
			t.Errorf("%s: a probe asks a port that the container does not name", who)
		}
	}
	if !strings.HasPrefix(c.Image, "cachemesh:") {
		return
	}
	switch len(c.Command) {
	case 0: // the image's entrypoint
		accepted(t, who, "cachemesh", c.Args)
	default:
		accepted(t, who, c.Command[0], slices.Concat(c.Command[1:], c.Args))
	}
}

func hasPort(c corev1.Container, port intstr.IntOrString) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.String() })
}

// container finds a container of a pod.
func container(t *testing.T, list []corev1.Container, name string) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no container %s", name)
	}
	return list[i]
}

// listens checks that a container names the port of a listener's address.
func listens(t *testing.T, c corev1.Container, flag, port string) {
	t.Helper()
	_, number, _ := strings.Cut(flagOf(c.Args, flag), ":")
	for _, p := range c.Ports {
		if p.Name == port && strconv.Itoa(int(p.ContainerPort)) == number {
			return
		}
	}
	t.Errorf("%s listens at port %q with --%s, and its ports are %v", c.Name, number, flag, c.Ports)
}

// The injected example is what inject makes of the plain one, and each file that the sidecar is told of is mounted.
func TestInjectedExample(t *testing.T) {
	const issuer, secret = "cachemesh", "redis"
	out, err := run("cachemesh", "inject", "-f", examples+"/app.yaml", "--image", "cachemesh:v1", "--region", "us-east",
		"--controlplane", "cachemesh-us-east.cachemesh:18000", "--tls-issuer", issuer, "--redis-secret", secret)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, examples+"/app.injected.yaml", []byte(out))
	app := decode(t, "app.injected.yaml", []byte(out)).deployments[0]
	pod := app.Spec.Template.Spec
	checkPod(t, "app", app.Spec.Template.Labels, app.Spec.Selector, pod)

	sidecar := pod.InitContainers[0]
	if sidecar.Name != "cachemesh" || sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Errorf("the first init container is %s with restartPolicy %v, want a native sidecar", sidecar.Name, sidecar.RestartPolicy)
	}
	listens(t, sidecar, "metrics", "cm-metrics")
	if admin := flagOf(sidecar.Args, "admin"); admin != "" {
		t.Errorf("the admin pages are at %s, want the default, on loopback", admin)
	}
	for _, flag := range []string{"dir", "redis-socket", "redis-resp3-socket", "tls-ca", "tls-cert", "tls-key"} {
		if path := flagOf(sidecar.Args, flag); !mounted(sidecar, path) {
			t.Errorf("--%s=%s is on no volume of the sidecar", flag, path)
		}
	}
	address, ok := strings.CutPrefix(flagOf(container(t, pod.Containers, "app").Args, "redis"), "unix:")
	if !ok || address != flagOf(sidecar.Args, "redis-socket") || !mounted(container(t, pod.Containers, "app"), address) {
		t.Errorf("the application looks for Redis at %s, the sidecar offers it at %s", address, flagOf(sidecar.Args, "redis-socket"))
	}
	identity := ""
	for _, v := range pod.Volumes {
		if v.CSI != nil {
			identity = v.CSI.VolumeAttributes["csi.cert-manager.io/uri-sans"]
		}
	}
	name := strings.NewReplacer("$(", "${", ")", "}").Replace(flagOf(sidecar.Args, "name"))
	if want := "spiffe://cachemesh/us-east/" + name; identity != want {
		t.Errorf("the certificate is for %s, want %s", identity, want)
	}
}

func mounted(c corev1.Container, path string) bool {
	return path != "" && slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		relative, err := filepath.Rel(m.MountPath, path)
		return err == nil && !strings.HasPrefix(relative, "..")
	})
}

// Every case of package inject is valid to Kubernetes, too, but for the field that is there because it is unknown.
func TestInjectedPodsAreValid(t *testing.T) {
	data := read(t, root+"/inject/testdata/secrets.injected.yaml")
	pod := strict[corev1.Pod](t, "secrets.injected.yaml", data)
	checkContainer(t, "secrets", pod.Spec.InitContainers[0])
	accepted(t, "secrets", "cachemesh", pod.Spec.InitContainers[0].Args)
	for _, path := range []string{"/etc/cachemesh/redis/password", "/etc/cachemesh/tls/ca.crt"} {
		if !mounted(pod.Spec.InitContainers[0], path) {
			t.Errorf("%s is on no volume of the sidecar", path)
		}
	}
}

// Redis pods register for the example mesh's shards, two nodes each, and start as replicas of nobody.
func TestRedisExample(t *testing.T) {
	all := decode(t, "redis.yaml", read(t, examples+"/redis.yaml"))
	mesh(t, examples+"/mesh.yaml")
	var m struct {
		Pools []struct {
			Name  string
			Redis struct{ PasswordFile string }
		}
		Regions []struct{ Shards []struct{ Pool, Name string } }
	}
	if err := yaml.Unmarshal(read(t, examples+"/mesh.yaml"), &m); err != nil {
		t.Fatal(err)
	}
	nodes, ids := map[string]int{}, map[string]bool{}
	for _, set := range all.statefulSets {
		pod := set.Spec.Template
		checkPod(t, set.Name, pod.Labels, set.Spec.Selector, pod.Spec)
		if set.Spec.ServiceName != all.services[0].Name || !labels.SelectorFromSet(all.services[0].Spec.Selector).Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s: the Service is another's", set.Name)
		}
		if budget, err := metav1.LabelSelectorAsSelector(all.budgets[0].Spec.Selector); err != nil || !budget.Matches(labels.Set(pod.Labels)) || all.budgets[0].Spec.MaxUnavailable.IntValue() != 1 {
			t.Errorf("%s: both nodes of a shard may be drained at once (%v)", set.Name, err)
		}
		for other := range all.statefulSets {
			o := all.statefulSets[other]
			if match, err := metav1.LabelSelectorAsSelector(o.Spec.Selector); err != nil || match.Matches(labels.Set(pod.Labels)) != (o.Name == set.Name) {
				t.Errorf("%s selects the pods of %s (%v)", o.Name, set.Name, err)
			}
		}
		register := pod.Spec.InitContainers[0]
		for i := range int(*set.Spec.Replicas) {
			shard := strings.ReplaceAll(flagOf(register.Args, "shard"), "$(POD_INDEX)", strconv.Itoa(i))
			nodes[flagOf(register.Args, "pool")+"/"+shard]++
			ids[strings.ReplaceAll(flagOf(register.Args, "id"), "$(POD_NAME)", set.Name+"-"+strconv.Itoa(i))] = true
		}
		for _, name := range []string{"POD_NAME", "POD_INDEX", "POD_IP"} {
			if !slices.ContainsFunc(register.Env, func(e corev1.EnvVar) bool { return e.Name == name && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil }) {
				t.Errorf("%s: the register container does not know %s", set.Name, name)
			}
		}
		if set.Spec.Template.Spec.RestartPolicy != "" && set.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyAlways {
			t.Errorf("%s: a node that was asked to end stays down", set.Name)
		}
		startsAsReplicaOfNobody(t, set.Name, pod.Spec.Containers[0].Command, "of-the-test")
	}
	want := map[string]int{}
	for _, shard := range m.Regions[0].Shards {
		want[shard.Pool+"/"+shard.Name] = 2
	}
	if diff := cmp.Diff(want, nodes); diff != "" || len(ids) != 2*len(want) {
		t.Errorf("%d registrations; nodes of the mesh's shards (-want +got):\n%s", len(ids), diff)
	}
	app := decode(t, "app.injected.yaml", read(t, examples+"/app.injected.yaml")).deployments[0]
	if file := m.Pools[0].Redis.PasswordFile; !mounted(app.Spec.Template.Spec.InitContainers[0], file) {
		t.Errorf("%s is on no volume of the sidecar", file)
	}
	control := decode(t, "controlplane.yaml", read(t, examples+"/controlplane.yaml")).deployments[0]
	if file := m.Pools[0].Redis.PasswordFile; !mounted(control.Spec.Template.Spec.Containers[0], file) {
		t.Errorf("%s is on no volume of the control plane", file)
	}
}
