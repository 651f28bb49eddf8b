{{/* Labels of an object; component is "" for objects that belong to no single component. */}}
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

{{/* A restricted security context of a container. */}}
{{- define "slipway.lockedDown" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A Deployment of `slipway up`, with its Service, PodDisruptionBudget and NetworkPolicy. Parameters: component, name, values, claim, argument. */}}
{{- define "slipway.workload" }}
{{- $root := .root }}
{{- $server := .root.Values.server }}
{{- $tls := $server.tls }}
{{- $scheme := ternary ", scheme: HTTPS" "" (ne $tls.secret "") }}
{{- $labels := include "slipway.labels" (dict "root" .root "component" .component) }}
{{- range $server.corsOrigins }}
{{- if not (regexMatch "^https?://[^,/ *@]+$" .) }}
{{- fail "server.corsOrigins must contain origins only, such as https://app.example, without a path" }}
{{- end }}
{{- end }}
{{- range $server.hosts }}
{{- if not (regexMatch "^[^,:/ ]+$" .) }}
{{- fail "server.hosts must contain host names only, without a scheme, port, comma or space" }}
{{- end }}
{{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  # Two pods must not write the same SQLite file, not even during an update.
  strategy: {type: {{ if and $server.database.secret $server.objects.url }}RollingUpdate{{ else }}Recreate{{ end }}}
  selector:
    matchLabels: {{- $labels | nindent 6 }}
  template:
    metadata:
      labels: {{- $labels | nindent 8 }}
    spec:
      serviceAccountName: {{ .name }}
      securityContext: {runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, fsGroupChangePolicy: OnRootMismatch, runAsNonRoot: true}
      nodeSelector: {{- .values.nodeSelector | toYaml | nindent 8 }}
      tolerations: {{- .values.tolerations | toYaml | nindent 8 }}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels: {{- $labels | nindent 12 }}
      imagePullSecrets: {{- $root.Values.imagePullSecrets | toYaml | nindent 8 }}
      containers:
      - name: slipway
        image: {{ include "slipway.image" $root }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        args:
        - up
        - --home=/var/lib/slipway/home
        - --listen=0.0.0.0:7070
        - --inference-listen=0.0.0.0:7071
        - --grpc-listen=0.0.0.0:7072
        - --token-file=/etc/slipway/tokens/tokens
        {{- if $tls.secret }}
        - --tls-cert=/etc/slipway/tls/tls.crt
        - --tls-key=/etc/slipway/tls/tls.key
        {{- end }}
        {{- with $server.hosts }}
        - --hosts={{ join "," . }}
        {{- end }}
        {{- range $server.corsOrigins }}
        - --cors-origin={{ . }}
        {{- end }}
        {{- with .argument }}
        - {{ . }}
        {{- end }}
        env:
        - {name: SLIPWAY_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: SLIPWAY_POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: SLIPWAY_CONTROLLER, value: apart}
        - {name: SLIPWAY_IMAGE, value: {{ include "slipway.image" $root }}}
        - {name: SLIPWAY_IMAGE_PULL_POLICY, value: {{ $root.Values.image.pullPolicy }}}
        {{- with $root.Values.imagePullSecrets }}
        {{- $names := list }}
        {{- range . }}
        {{- $names = append $names .name }}
        {{- end }}
        - {name: SLIPWAY_IMAGE_PULL_SECRETS, value: {{ join "," $names | quote }}}
        {{- end }}
        {{- with $server.database.secret }}
        - {name: SLIPWAY_DATABASE, valueFrom: {secretKeyRef: {name: {{ . }}, key: url}}}
        {{- end }}
        {{- with $server.objects.url }}
        - {name: SLIPWAY_OBJECTS, value: {{ . | quote }}}
        {{- end }}
        {{- with $server.objects.secret }}
        envFrom:
        - {secretRef: {name: {{ . }}}}
        {{- end }}
        ports:
        - {name: http, containerPort: 7070, protocol: TCP}
        - {name: inference, containerPort: 7071, protocol: TCP}
        - {name: grpc, containerPort: 7072, protocol: TCP}
        startupProbe: {httpGet: {path: /readyz, port: http{{ $scheme }}}, periodSeconds: 1, failureThreshold: 120}
        readinessProbe: {httpGet: {path: /readyz, port: http{{ $scheme }}}, periodSeconds: 5}
        livenessProbe: {httpGet: {path: /healthz, port: http{{ $scheme }}}, periodSeconds: 10}
        resources: {{- .values.resources | toYaml | nindent 10 }}
        securityContext:
          runAsNonRoot: true
          {{- include "slipway.lockedDown" $root | nindent 10 }}
        volumeMounts:
        - {name: state, mountPath: /var/lib/slipway}
        - {name: tokens, mountPath: /etc/slipway/tokens, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if $tls.secret }}
        - {name: tls, mountPath: /etc/slipway/tls, readOnly: true}
        {{- end }}
      volumes:
      {{- with .claim }}
      - {name: state, persistentVolumeClaim: {claimName: {{ . }}}}
      {{- else }}
      - {name: state, emptyDir: {}}
      {{- end }}
      - {name: tokens, secret: {secretName: {{ $server.tokenSecret }}, defaultMode: 0440}}
      - {name: tmp, emptyDir: {}}
      {{- with $tls.secret }}
      - {name: tls, secret: {secretName: {{ . }}, defaultMode: 0440}}
      {{- end }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  selector: {{- $labels | nindent 4 }}
  ports:
  - {name: http, port: 7070, targetPort: http, protocol: TCP}
  - {name: inference, port: 7071, targetPort: inference, protocol: TCP}
  - {name: grpc, port: 7072, targetPort: grpc, protocol: TCP}
{{- if gt (int .values.replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- $labels | nindent 6 }}
{{- end }}
{{- if $root.Values.networkPolicy }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: slipway-{{ .component }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- $labels | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
  - ports:
    - {port: 7070, protocol: TCP}
    - {port: 7071, protocol: TCP}
    - {port: 7072, protocol: TCP}
{{- end }}
{{- end }}
