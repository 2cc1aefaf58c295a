"""One gateway replica: the HTTP application and the gRPC methods over one chat service."""

import asyncio
import gc
import logging
import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from chorus_cluster import metrics
from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.config import AppConfig
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.call import GrpcMethods
from chorus_cluster.gateway.grpc.chat import GrpcChatMethods
from chorus_cluster.gateway.grpc.completions import GrpcCompletionMethods
from chorus_cluster.gateway.grpc.health import HealthMethods
from chorus_cluster.gateway.grpc.responses.methods import GrpcResponsesMethods
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.metrics import GatewayMetrics
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.harmony.warm_up import warm_up
from chorus_cluster.routing.client import ServeEngineClient
from chorus_cluster.routing.retries import RetryPolicy
from chorus_cluster.store.open import open_store

logger = logging.getLogger(__name__)


def _key_file(config: AppConfig) -> KeyFile | None:
    """Errors: KeyFileError."""
    if config.auth.keys_file is None:
        logger.warning("There are no API keys (auth.keys_file): whoever reaches this server may use it")
        return None
    keys = KeyFile(Path(config.auth.keys_file))
    logger.info("%s has %d API keys", keys.path, len(keys.ring()))
    return keys


class GatewayReplica(GrpcChatMethods, GrpcCompletionMethods, GrpcResponsesMethods, HealthMethods):
    """What Serve starts. It must be wrapped by `serve.ingress()`, which asks for the ASGI app below."""

    async def __init__(self, workers: DeploymentHandle[Any], config: AppConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        # The replica counts as ready only after this, so that no request waits for it.
        await asyncio.to_thread(warm_up)
        # What is there by now stays. Collections that looked at it again would halt all streams for some 0.1 s.
        gc.collect()
        gc.freeze()
        own_metrics = GatewayMetrics()
        engine = ServeEngineClient(
            # Messages come as bytes, for every stream and merge interval one; Serve's default, cloudpickle, would take
            # several times as long.
            generate=workers.options(
                method_name="generate_serialized", stream=True, response_serialization="pickle"
            ).remote,
            model_info=workers.options(method_name="model_info").remote,
            policy=RetryPolicy(max_attempts=config.routing.max_attempts),
            on_retry=own_metrics.on_engine_retry,
        )
        self._client_timeout_s = config.gateway.client_timeout_s
        self._access = Access(_key_file(config))
        self._drain_timeout_s = config.gateway.drain_timeout_s
        service = ChatService(engine, own_metrics, header_guard=config.gateway.header_guard)
        GrpcMethods.__init__(
            self,
            service,
            responses=ResponsesService(service, await open_store(config.store, own_metrics.registry)),
            access=self._access,
            client_timeout_s=self._client_timeout_s,
            raises_in_streams=os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1",
        )
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._hub = await asyncio.to_thread(metrics.HubClient)
        self._pushing = asyncio.create_task(self._hub.push_forever(self._page))
        if self._responses.jobs is not None:
            self._keeping_up = asyncio.create_task(self._responses.jobs.keep_up())

    async def __del__(self) -> None:
        """Serve awaits this when it stops a replica, after the open requests; what is left of the time is for responses
        in the background."""
        responses = getattr(self, "_responses", None)
        if responses is not None and responses.jobs is not None:
            await responses.jobs.drain(self._drain_timeout_s)

    def __serve_build_asgi_app__(self) -> Any:
        # Serve adds x-request-id itself.
        return build_http_app(
            self._service,
            responses=self._responses,
            metrics_page=lambda: self._hub.cluster_page(self._page()),
            access=self._access,
            client_timeout_s=self._client_timeout_s,
            sends_request_id=False,
        )

    def _page(self) -> metrics.Page:
        return metrics.Page("gateway", self._replica, self._service.metrics.exposition().decode())
