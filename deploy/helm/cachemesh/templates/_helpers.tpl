{{- define "cachemesh.name" -}}
{{- printf "%s-%s" .Release.Name .Values.region | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "cachemesh.selector" -}}
app.kubernetes.io/name: cachemesh-controlplane
app.kubernetes.io/instance: {{ include "cachemesh.name" . }}
{{- end -}}

{{- define "cachemesh.labels" -}}
{{ include "cachemesh.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- /* "true" if control planes agree in Consul on who leads. */ -}}
{{- define "cachemesh.consul" -}}
{{- $mesh := fromYaml (required "mesh: write the mesh.yaml" .Values.mesh) -}}
{{- with get $mesh "Error" -}}
{{- fail (printf "mesh: it is no YAML: %s" .) -}}
{{- end -}}
{{- with get $mesh "membership" -}}
{{- if kindIs "map" (get . "consul") -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Two control planes with a state folder each would both lead. */ -}}
{{- define "cachemesh.replicas" -}}
{{- $consul := eq (include "cachemesh.consul" .) "true" -}}
{{- $replicas := get .Values "replicas" | default (ternary 2 1 $consul) | int -}}
{{- if and (gt $replicas 1) (not $consul) -}}
{{- fail (printf "replicas: %d control planes with static membership would each lead, with a state of their own: let them agree in Consul (membership: {consul: {}} in the mesh), or set replicas: 1" $replicas) -}}
{{- end -}}
{{- $replicas -}}
{{- end -}}

{{- define "cachemesh.scheme" -}}
{{- ternary "HTTPS" "HTTP" (ne .Values.tls.secretName "") -}}
{{- end -}}

{{- /* The kubelet has no certificate to show; xDS listens as soon as there is something to serve. */ -}}
{{- define "cachemesh.ready" -}}
{{- if .Values.tls.httpClientCertificates -}}
tcpSocket: {port: xds}
{{- else -}}
httpGet: {path: /readyz, port: http, scheme: {{ include "cachemesh.scheme" . }}}
{{- end -}}
{{- end -}}
