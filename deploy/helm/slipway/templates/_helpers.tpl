{{/* Labels of an object of a component; "" for what is common. */}}
{{- define "slipway.labels" -}}
app.kubernetes.io/name: slipway
slipway.dev/installation: {{ .root.Release.Namespace }}
{{- if .component }}
app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end }}

{{- define "slipway.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* What a container may not do. */}}
{{- define "slipway.lockedDown" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
