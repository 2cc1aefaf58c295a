{{- /* Environment of every Ray process: Serve reads its flags when it is imported, on head and workers alike. */ -}}
{{- define "chorus.env" -}}
- name: RAY_SERVE_ENABLE_HA_PROXY
  value: {{ ternary "1" "0" .Values.dataPlane.haproxy | quote }}
- name: RAY_SERVE_THROUGHPUT_OPTIMIZED
  value: {{ ternary "1" "0" .Values.dataPlane.throughputOptimized | quote }}
# A replaced HAProxy process cuts what it still carries after this time.
- name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S
  value: {{ .Values.upgrade.streamSeconds | quote }}
# A stopped gateway takes requests until every proxy knows. Serve's 30 s are for load balancers of others.
- name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S
  value: "5"
# Somewhat longer than gateways wait for a client that doesn't read or send on (60 s by default).
- name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S
  value: {{ add 10 (ceil (default 60 .Values.config.gateway.client_timeout_s)) | quote }}
# gRPC's event engine hands each message from thread to thread, which costs a gateway a fifth of its CPU.
- name: GRPC_EXPERIMENTS
  value: "-event_engine_client,-event_engine_listener"
- name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO
  value: "0"
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
{{- end -}}

{{- define "chorus.probes" -}}
livenessProbe:
  httpGet: {path: /api/healthz, port: 52365}
  {{- toYaml .root.Values.probes.liveness | nindent 2 }}
readinessProbe:
  {{- if .head }}
  httpGet: {path: /api/healthz, port: 52365}
  {{- else }}
  # The proxy's own answer: 200 while a gateway is up, 503 while this node is drained.
  httpGet: {path: /-/healthz, port: serve}
  {{- end }}
  {{- toYaml .root.Values.probes.readiness | nindent 2 }}
{{- end -}}

{{- define "chorus.ports" -}}
{{- if .head }}
- {name: gcs-server, containerPort: 6379}
- {name: dashboard, containerPort: 8265}
{{- end }}
- {name: serve, containerPort: {{ .root.Values.ports.http }}}
- {name: serve-grpc, containerPort: {{ .root.Values.ports.grpc }}}
- {name: metrics, containerPort: 8080}
{{- end -}}

{{- define "chorus.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpus -}}
{{- $key := .gpuResource | default "nvidia.com/gpu" -}}
{{- $_ := set $resources "limits" (merge (dict $key .gpus) ($resources.limits | default dict)) -}}
{{- $_ := set $resources "requests" (merge (dict $key .gpus) ($resources.requests | default dict)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "chorus.container" -}}
{{- $volume := .root.Values.modelVolume -}}
- name: {{ ternary "ray-head" "ray-worker" .head }}
  image: {{ include "chorus.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  ports:
    {{- include "chorus.ports" . | trim | nindent 4 }}
  env:
    {{- include "chorus.env" .root | nindent 4 }}
    {{- with .group.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- include "chorus.resources" .group | nindent 4 }}
  securityContext:
    {{- toYaml .root.Values.securityContext | nindent 4 }}
  {{- include "chorus.probes" . | nindent 2 }}
  {{- if and .root.Values.drainSeconds (not .head) }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .root.Values.drainSeconds }}
  {{- end }}
  volumeMounts:
    - name: shm
      mountPath: /dev/shm
    {{- if .mountModel }}
    - name: model
      mountPath: {{ $volume.mountPath }}
      readOnly: true
      {{- with $volume.subPath }}
      subPath: {{ . }}
      {{- end }}
    {{- end }}
    {{- if .mountKeys }}
    # The folder: a single file would not follow the secret's changes.
    - name: api-keys
      mountPath: {{ include "chorus.apiKeysPath" .root }}
      readOnly: true
    {{- end }}
    {{- if .mountStore }}
    - name: store
      mountPath: {{ include "chorus.storePath" .root }}
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "chorus.volumes" -}}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .group.shmSize }}
{{- if .mountModel }}
- name: model
  {{- if .root.Values.modelVolume.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .root.Values.modelVolume.existingClaim }}
    readOnly: true
  {{- else }}
  hostPath:
    path: {{ .root.Values.modelVolume.hostPath }}
    type: Directory
  {{- end }}
{{- end }}
{{- if .mountKeys }}
- name: api-keys
  secret:
    secretName: {{ .root.Values.apiKeys.existingSecret }}
    items:
      - key: {{ .root.Values.apiKeys.key }}
        path: {{ .root.Values.apiKeys.key }}
{{- end }}
{{- if .mountStore }}
- name: store
  secret:
    secretName: {{ .root.Values.store.existingSecret }}
    items:
      - key: {{ .root.Values.store.key }}
        path: {{ .root.Values.store.key }}
{{- end }}
{{- end -}}

{{- define "chorus.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" }}
{{- with get $.group $key }}
{{ $key }}:
  {{- if kindIs "string" . }} {{ . }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- with .group.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    labelSelector:
      matchLabels:
        {{- include "chorus.selectorLabels" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* A pod template. Takes root, group (a section of the values), component (the group's name), head (a boolean). */ -}}
{{- define "chorus.podTemplate" -}}
{{- $hasVolume := or .root.Values.modelVolume.existingClaim .root.Values.modelVolume.hostPath -}}
{{- $takesEngines := has "engine" (.group.roles | default list) -}}
{{- $takesGateways := has "gateway" (.group.roles | default list) -}}
{{- $mounts := dict "mountModel" (and $hasVolume $takesEngines) "mountKeys" (and .root.Values.apiKeys.existingSecret $takesGateways) -}}
{{- $_ := set $mounts "mountStore" (and .root.Values.store.existingSecret $takesGateways) -}}
{{- $pod := merge $mounts . -}}
metadata:
  labels:
    {{- with .group.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "chorus.podLabels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  {{- $annotations := .group.podAnnotations | default dict }}
  {{- if and .head (eq .root.Values.upgrade.onConfigChange "NewCluster") }}
  {{- $annotations = merge (dict "chorus/config-checksum" (include "chorus.args" .root | sha256sum)) $annotations }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "chorus.serviceAccountName" .root }}
  automountServiceAccountToken: false
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ add .root.Values.drainSeconds 30 }}
  {{- with include "chorus.scheduling" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    {{- include "chorus.container" $pod | nindent 4 }}
  volumes:
    {{- include "chorus.volumes" $pod | nindent 4 }}
{{- end -}}
