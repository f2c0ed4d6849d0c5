{{- define "pizzaflow.labels" -}}
app.kubernetes.io/name: pizzaflow
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "pizzaflow.metadata" -}}
labels:
  {{- include "pizzaflow.labels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "pizzaflow.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
volumes:
  - name: tmp
    emptyDir: { sizeLimit: 64Mi }
  {{- with .root.Values.tlsSecret }}
  - name: tls
    secret: { secretName: {{ . | quote }}, defaultMode: 0440 }
  {{- end }}
{{- end }}

{{- /* What each container has: what it runs, with which options. */ -}}
{{- define "pizzaflow.container" -}}
name: {{ .name }}
image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
{{- with .root.Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
envFrom:
  - secretRef: { name: {{ .root.Values.existingSecret | quote }} }
  {{- with .service.existingSecret }}
  - secretRef: { name: {{ . | quote }} }
  {{- end }}
env:
  {{- /* DATA_DIR cannot be made: without a DATABASE_URL the start fails, and orders are not taken into a SQLite that ends with the pod */}}
  {{- $own := dict "SERVICES" .services "HTTP_ADDR" ":8080" "ADMIN_ADDR" ":8081" "DATA_DIR" "/proc/none" "LOG_FORMAT" "json" }}
  {{- if eq .services "frontend" }}
  {{- $_ := set $own "ORDER_URL" (printf "http://%s-order:8080" .root.Release.Name) }}
  {{- end }}
  {{- $all := dict }}
  {{- range $options := list $own .root.Values.config (.service.config | default dict) }}{{- /* merge would not let 0 and false win */}}
  {{- range $key, $value := $options }}{{- $_ := set $all $key $value }}{{- end }}
  {{- end }}
  {{- range $key, $value := $all }}
  - { name: {{ $key }}, value: {{ ternary (int64 $value) $value (kindIs "float64" $value) | toString | quote }} }
  {{- end }}
volumeMounts:
  - { name: tmp, mountPath: /tmp }
  {{- if .root.Values.tlsSecret }}
  - { name: tls, mountPath: /etc/pizzaflow/tls, readOnly: true }
  {{- end }}
{{- end }}
