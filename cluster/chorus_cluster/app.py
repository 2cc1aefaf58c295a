"""The Serve application: gateways in front, workers behind.

This is the one file that knows both rooms; it imports the workers' only while it builds. `chorus serve` calls
`build_from`; a Serve config file names `build` and gives the configuration's sections as `args`:

    applications:
      - name: chorus
        import_path: chorus_cluster.app:build
        args: {model: {path: /models/gpt-oss-20b}, workers: {replicas: 2, num_gpus: 1}}
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from chorus_cluster import metrics
from chorus_cluster.config import AppConfig, ConfigError, WorkersConfig, parse
from chorus_cluster.gateway.replica import GatewayReplica
from chorus_cluster.resolve import EngineSettings, resolve, supported_gpus

APP_NAME = "chorus"
# What Serve's gRPC server must be told of; its reflection then lists them.
GRPC_SERVICER_FUNCTIONS = [
    "chorus_cluster.gateway.grpc.service.add_chat_service",
    "chorus_cluster.gateway.grpc.service.add_completion_service",
    "chorus_cluster.gateway.grpc.service.add_responses_service",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]

# Calls beyond an engine's own queue that a worker lets in: the engine refuses them, with a reason.
_REFUSAL_SLOTS = 32
_BACKPRESSURE = {"status_code": 429, "retry_after_s": 1.0}
_STATS_TIMEOUT_S = 5.0
_DRAIN_POLL_S = 0.1
_HEALTH_CHECK_PERIOD_S = 2.0
_HEALTH_CHECK_TIMEOUT_S = 10.0


def build(args: Mapping[str, Any]) -> Application:
    """The application for a Serve config file's `args`. Errors: ConfigError."""
    return build_from(parse(args, AppConfig))


def build_from(config: AppConfig) -> Application:
    """Errors: ConfigError where the settings of a worker don't fit together."""
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=config.gateway.replicas or 1,
        max_ongoing_requests=config.gateway.max_ongoing_requests,
        # Serve counts a request as queued until its task first runs, so a burst of arrivals in one turn of the event
        # loop looks like a queue. With a short one, 18 of 32 simultaneous requests were refused on an idle gateway.
        max_queued_requests=config.gateway.max_ongoing_requests,
        backpressure_config=_BACKPRESSURE,
        ray_actor_options={"num_cpus": config.gateway.num_cpus},
        graceful_shutdown_timeout_s=config.gateway.drain_timeout_s,
        **_lifecycle(config),
    )(serve.ingress()(GatewayReplica))
    return gateway.bind(_workers(config), config)


def engine_settings(config: AppConfig) -> EngineSettings:
    """What the configuration leaves open, by the Ray cluster that this process is connected to, if it is."""
    return resolve(config, supported_gpus(cluster_resources()))


def cluster_resources() -> Mapping[str, float]:
    """By Ray's names; none, if this process is not connected to a cluster."""
    if not ray.is_initialized():
        return {}
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _workers(config: AppConfig) -> Application:
    from chorus_workers.config import WorkerConfig
    from chorus_workers.worker import Worker

    workers, engine = config.workers, engine_settings(config)
    try:
        worker_config = WorkerConfig(
            model=config.model.path,
            served_model_name=config.model.served_name,
            max_model_len=workers.max_model_len,
            block_size=workers.kv.block_size,
            num_kv_blocks=workers.kv.num_blocks,
            prefix_cache=workers.kv.prefix_cache,
            max_num_seqs=engine.max_num_seqs,
            max_batched_tokens=engine.max_batched_tokens,
            step_budget_s=workers.step_budget_s,
            grammar_timeout_s=workers.grammar_timeout_s,
            max_queued_requests=workers.max_queued_requests,
            num_shards=workers.shards,
            merge_interval_s=workers.merge_interval_s,
            grpc_port=workers.grpc_port,
            grpc_host=workers.grpc_host,
            num_threads=workers.num_threads,
            runner=engine.runner,
            kv_cache_dtype=workers.kv_cache_dtype,
            batch_invariant=workers.batch_invariant,
            metrics_actor=f"{metrics.HUB_NAMESPACE}/{metrics.HUB_NAME}",
        )
    except ValueError as error:
        raise ConfigError(f"workers: {error}") from None
    deployment = serve.deployment(
        name="Worker",
        num_replicas=workers.replicas,
        max_ongoing_requests=engine.max_num_seqs + workers.max_queued_requests + _REFUSAL_SLOTS,
        max_queued_requests=config.routing.max_waiting,
        backpressure_config=_BACKPRESSURE,
        ray_actor_options={"num_cpus": workers.num_cpus, "num_gpus": engine.num_gpus},
        **_shard_bundles(workers, engine),
        request_router_config={
            "request_router_class": "chorus_cluster.routing.router:OutstandingTokensRouter",
            "request_router_kwargs": {"expected_output_tokens": config.routing.expected_output_tokens},
            "request_routing_stats_period_s": config.routing.stats_period_s,
            "request_routing_stats_timeout_s": _STATS_TIMEOUT_S,
        },
        graceful_shutdown_timeout_s=workers.drain_timeout_s,
        **_lifecycle(config),
    )(Worker)
    return deployment.bind(worker_config)


def _shard_bundles(workers: WorkersConfig, engine: EngineSettings) -> dict[str, Any]:
    """A bundle of resources for each shard, if there are several; the first is the replica's own."""
    if workers.shards == 1:
        return {}
    resources = {"CPU": workers.num_cpus, "GPU": engine.num_gpus}
    return {"placement_group_bundles": [{k: v for k, v in resources.items() if v}] * workers.shards}


def _lifecycle(config: AppConfig) -> dict[str, Any]:
    return {
        "graceful_shutdown_wait_loop_s": _DRAIN_POLL_S,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
        "logging_config": {
            "log_level": config.logging.level,
            "encoding": config.logging.format.upper(),
            "enable_access_log": config.logging.access,
        },
    }
