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

{{- /* Replicas at once, a rolling change included. Takes count and percent. */ -}}
{{- define "chorus.surged" -}}
{{- addf .count (ceil (divf (mulf .count .percent) 100)) -}}
{{- end -}}

{{- define "chorus.check.cpus" -}}
{{- $config := .Values.config -}}
{{- $surge := .Values.upgrade.surgePercent -}}
{{- $gateways := include "chorus.surged" (dict "count" $config.gateway.replicas "percent" $surge.gateway) | float64 -}}
{{- $engines := include "chorus.surged" (dict "count" $config.workers.replicas "percent" $surge.engine) | float64 -}}
{{- $forGateways := mulf $gateways $config.gateway.num_cpus -}}
{{- $forAll := addf $forGateways (mulf $engines $config.workers.shards $config.workers.num_cpus) -}}
{{- $ofGateways := 0.0 -}}
{{- $ofAll := 0.0 -}}
{{- $counted := true -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- $cpus := include "chorus.cpus" $group.resources | float64 -}}
{{- $counted = and $counted (gt $cpus 0.0) -}}
{{- $ofAll = addf $ofAll (mulf $group.replicas $cpus) -}}
{{- if has "gateway" $group.roles -}}
{{- $ofGateways = addf $ofGateways (mulf $group.replicas $cpus) -}}
{{- end -}}
{{- end -}}
{{- if and $counted (gt $forGateways $ofGateways) -}}
{{- fail (printf "gateways reserve %v CPUs (config.gateway.num_cpus for each of config.gateway.replicas and upgrade.surgePercent.gateway), but the pods that take them have %v" $forGateways $ofGateways) -}}
{{- end -}}
{{- if and $counted (gt $forAll $ofAll) -}}
{{- fail (printf "gateways and engines reserve %v CPUs (replicas with surgePercent, shards, num_cpus), but the pods of workerGroups have %v" $forAll $ofAll) -}}
{{- end -}}
{{- end -}}

{{- define "chorus.check.gpus" -}}
{{- $workers := .Values.config.workers -}}
{{- $perEngine := mulf $workers.shards $workers.num_gpus -}}
{{- $wanted := include "chorus.surged" (dict "count" $workers.replicas "percent" .Values.upgrade.surgePercent.engine) | float64 -}}
{{- $room := 0.0 -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- if gt $perEngine 0.0 -}}
{{- $room = addf $room (mulf $group.replicas (floor (divf $group.gpus $perEngine))) -}}
{{- else if $group.gpus -}}
{{- fail (printf "workerGroups.%s has GPUs, but config.workers.num_gpus is 0: no engine would use them" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (gt $perEngine 0.0) (lt $room $wanted) -}}
{{- fail (printf "%v engines (config.workers.replicas and upgrade.surgePercent.engine) of %v GPUs each (shards x num_gpus, in one pod) do not fit: the pods of workerGroups hold %v" $wanted $perEngine $room) -}}
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
{{- /* Of Ray (GCS, metrics, dashboard, client, agent, autoscaler), of HAProxy (statistics, metrics), and of the proxy that
it falls back on; then those of Ray's worker processes and of Serve's replicas. */ -}}
{{- $taken := list 6379 8080 8265 10001 52365 44217 44227 8404 9101 8500 9500 -}}
{{- $ranges := list (list 10002 19999) (list 30000 30999) (list 40000 40999) -}}
{{- range $name, $port := .Values.ports -}}
{{- $isTaken := has (int $port) $taken -}}
{{- range $ranges -}}
{{- $isTaken = or $isTaken (and (ge (int $port) (first .)) (le (int $port) (last .))) -}}
{{- end -}}
{{- if $isTaken -}}
{{- fail (printf "ports.%s is %v, which Ray or HAProxy uses; choose another" $name $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
