{{- /* The Ray label of nodes that take gateways. Serve spreads replicas over all nodes that have room: without it, some
would go to the engines' pods. */ -}}
{{- define "chorus.gatewayLabel" -}}
chorus/gateway
{{- end -}}

{{- /* The application's arguments: .Values.config, without the replica counts. Serve starts every replica anew when the
arguments change, so counts go into `deployments`, which Serve changes in place. */ -}}
{{- define "chorus.args" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "gateway" (omit $config.gateway "replicas") -}}
{{- $_ := set $config "workers" (omit $config.workers "replicas") -}}
{{- if .Values.apiKeys.existingSecret -}}
{{- $_ := set $config "auth" (dict "keys_file" (printf "%s/%s" (include "chorus.apiKeysPath" .) .Values.apiKeys.key)) -}}
{{- end -}}
{{- with .Values.store -}}
{{- if .existingSecret -}}
{{- $file := printf "%s/%s" (include "chorus.storePath" $) .key -}}
{{- $_ := set $config "store" (dict "url_file" $file "ttl_days" .ttlDays) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "chorus.apiKeysPath" -}}
/etc/chorus/api-keys
{{- end -}}

{{- define "chorus.storePath" -}}
/etc/chorus/store
{{- end -}}

{{- /* The Serve config: what KubeRay sends to PUT /api/serve/applications/. */ -}}
{{- define "chorus.serveConfig" -}}
# A proxy on every node that holds a replica: any of these pods is a way in.
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ .Values.ports.http }}
grpc_options:
  port: {{ .Values.ports.grpc }}
  grpc_servicer_functions:
    - chorus_cluster.gateway.grpc.service.add_chat_service
    - chorus_cluster.gateway.grpc.service.add_completion_service
    - chorus_cluster.gateway.grpc.service.add_responses_service
    - grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server
logging_config:
  encoding: {{ upper .Values.config.logging.format }}
  log_level: {{ .Values.config.logging.level }}
applications:
  - name: chorus
    route_prefix: /
    import_path: chorus_cluster.app:build
    args:
      {{- include "chorus.args" . | nindent 6 }}
    deployments:
      - name: Gateway
        num_replicas: {{ .Values.config.gateway.replicas }}
        max_surge_percent: {{ .Values.upgrade.surgePercent.gateway }}
        # All of them: Serve takes these instead of the application's, not over them.
        ray_actor_options:
          num_cpus: {{ .Values.config.gateway.num_cpus }}
          label_selector:
            {{ include "chorus.gatewayLabel" . }}: "true"
      - name: Worker
        num_replicas: {{ .Values.config.workers.replicas }}
        max_surge_percent: {{ .Values.upgrade.surgePercent.engine }}
{{- end -}}
