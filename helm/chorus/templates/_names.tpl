{{- define "chorus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" -}}
{{- end -}}

{{- /* The RayService's name. KubeRay makes names of clusters, pods and services from it, and so takes at most 47
characters, a letter first. */ -}}
{{- define "chorus.fullname" -}}
{{- $name := include "chorus.name" . -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- $full = $full | trunc 47 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "%q can't name a RayService: it must begin with a letter and hold only lower-case letters, digits and dashes; set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "chorus.serveServiceName" -}}
{{- include "chorus.fullname" . }}-serve-svc
{{- end -}}

{{- define "chorus.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "chorus.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* What selects this release's pods. Not app.kubernetes.io/name: KubeRay sets and selects by its own. */ -}}
{{- define "chorus.selectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: chorus
{{- end -}}

{{- /* Labels of pods: nothing that changes with the chart's version, which would start a new cluster. */ -}}
{{- define "chorus.podLabels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "chorus.selectorLabels" . }}
{{- end -}}

{{- define "chorus.labels" -}}
{{ include "chorus.podLabels" . }}
app.kubernetes.io/name: {{ include "chorus.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "chorus.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}
