{{- /* What a schema can't say: values that contradict each other, and would otherwise leave pods waiting for ever. */ -}}
{{- define "chorus.check" -}}
{{- include "chorus.check.model" . -}}
{{- include "chorus.check.gpus" . -}}
{{- include "chorus.check.memory" . -}}
{{- include "chorus.check.ports" . -}}
{{- end -}}

{{- define "chorus.check.model" -}}
{{- $volume := .Values.modelVolume -}}
{{- $path := .Values.config.model.path -}}
{{- if and $volume.existingClaim $volume.hostPath -}}
{{- fail "modelVolume: existingClaim and hostPath are both set; choose one" -}}
{{- end -}}
{{- if and $volume.subPath (not $volume.existingClaim) -}}
{{- fail "modelVolume.subPath is a folder of existingClaim, which is not set" -}}
{{- end -}}
{{- if or $volume.existingClaim $volume.hostPath -}}
{{- $root := printf "%s/" (trimSuffix "/" $volume.mountPath) -}}
{{- if not (hasPrefix $root (printf "%s/" $path)) -}}
{{- fail (printf "config.model.path is %q, which is not on the model volume; it must be %s or a folder below it" $path $volume.mountPath) -}}
{{- end -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- if and (not $.Values.config.workers.num_gpus) (not $group.mountModel) -}}
{{- fail (printf "workerGroups.%s.mountModel must be true: engines that need no GPU may start in any group" $name) -}}
{{- end -}}
{{- if and $group.gpus (not $group.mountModel) -}}
{{- fail (printf "workerGroups.%s.mountModel must be true: engines start where GPUs are" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "chorus.check.gpus" -}}
{{- $workers := .Values.config.workers -}}
{{- $perEngine := mulf ($workers.shards | default 1) ($workers.num_gpus | default 0) -}}
{{- $engines := 0 -}}
{{- if not .Values.workerGroups -}}
{{- fail "workerGroups is empty: gateways and engines have nowhere to run" -}}
{{- end -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- if gt ($perEngine | float64) 0.0 -}}
{{- $engines = add $engines (mul $group.replicas (floor (divf $group.gpus $perEngine) | int)) -}}
{{- else if $group.gpus -}}
{{- fail (printf "workerGroups.%s has GPUs, but config.workers.num_gpus is 0: no engine would use them" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (gt ($perEngine | float64) 0.0) (lt ($engines | int) ($workers.replicas | int)) -}}
{{- fail (printf "%v engines (config.workers.replicas) of %v GPUs each (shards x num_gpus), one pod for each engine, do not fit: the pods of workerGroups hold %v" $workers.replicas $perEngine $engines) -}}
{{- end -}}
{{- end -}}

{{- define "chorus.check.memory" -}}
{{- range $name, $group := merge (dict "head" .Values.head) .Values.workerGroups -}}
{{- $size := int64 (regexFind "^[0-9]+" $group.shmSize) -}}
{{- $bytes := ternary (mul $size 1073741824) (mul $size 1048576) (hasSuffix "Gi" $group.shmSize) -}}
{{- if gt (int64 $.Values.objectStoreBytes) $bytes -}}
{{- fail (printf "objectStoreBytes (%v) does not fit into the shmSize of %s (%s)" (int64 $.Values.objectStoreBytes) $name $group.shmSize) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "chorus.check.ports" -}}
{{- if eq (int .Values.ports.http) (int .Values.ports.grpc) -}}
{{- fail (printf "ports.http and ports.grpc are both %v" .Values.ports.http) -}}
{{- end -}}
{{- /* Of Ray (GCS, metrics, dashboard, client, agent, autoscaler) and of HAProxy (statistics, metrics). */ -}}
{{- $taken := list 6379 8080 8265 10001 52365 44217 44227 8404 9101 -}}
{{- range $name, $port := .Values.ports -}}
{{- if has (int $port) $taken -}}
{{- fail (printf "ports.%s is %v, which Ray or HAProxy uses; choose another" $name $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
