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
