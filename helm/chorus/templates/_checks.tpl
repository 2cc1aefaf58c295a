{{- /* What a schema can't say: values that contradict each other, and would otherwise leave pods waiting for ever. */ -}}
{{- define "chorus.check" -}}
{{- include "chorus.check.model" . -}}
{{- include "chorus.check.roles" . -}}
{{- include "chorus.check.gpus" . -}}
{{- include "chorus.check.cpus" . -}}
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
{{- end -}}
{{- end -}}

{{- define "chorus.check.roles" -}}
{{- $gateways := list -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- if has "gateway" $group.roles -}}
{{- $gateways = append $gateways $name -}}
{{- end -}}
{{- if not (has "engine" $group.roles) -}}
{{- if $group.gpus -}}
{{- fail (printf "workerGroups.%s has GPUs: its roles must include engine" $name) -}}
{{- end -}}
{{- if not $.Values.config.workers.num_gpus -}}
{{- fail (printf "config.workers.num_gpus is 0, so engines may start in any group: the roles of workerGroups.%s must include engine" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $gateways -}}
{{- fail "no group of workerGroups has the role gateway: gateways have nowhere to run" -}}
{{- end -}}
{{- end -}}

{{- /* CPUs that Ray counts in a pod: KubeRay rounds the limit, or else the request, up. 0: none is set. */ -}}
{{- define "chorus.cpus" -}}
{{- $cpu := (.limits | default dict).cpu | default (.requests | default dict).cpu | default 0 | toString -}}
{{- ternary (divf (trimSuffix "m" $cpu | float64) 1000.0) (float64 $cpu) (hasSuffix "m" $cpu) | ceil -}}
{{- end -}}

{{- define "chorus.check.cpus" -}}
{{- $config := .Values.config -}}
{{- $shards := mul $config.workers.replicas $config.workers.shards -}}
{{- $needed := addf (mulf $config.gateway.replicas $config.gateway.num_cpus) (mulf $shards $config.workers.num_cpus) -}}
{{- $there := 0.0 -}}
{{- $counted := true -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- $cpus := include "chorus.cpus" $group.resources | float64 -}}
{{- $counted = and $counted (gt $cpus 0.0) -}}
{{- $there = addf $there (mulf $group.replicas $cpus) -}}
{{- end -}}
{{- if and $counted (gt $needed $there) -}}
{{- fail (printf "gateways and engines reserve %v CPUs (config.gateway and config.workers: replicas, shards, num_cpus), but the pods of workerGroups have %v" $needed $there) -}}
{{- end -}}
{{- end -}}

{{- define "chorus.check.gpus" -}}
{{- $workers := .Values.config.workers -}}
{{- $perEngine := mulf $workers.shards $workers.num_gpus -}}
{{- $engines := 0 -}}
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
