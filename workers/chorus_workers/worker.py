"""The worker: one engine behind protobuf. A plain class, which the cluster wraps as a Serve deployment."""

import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing

from prometheus_client import generate_latest

from chorus_protos.v1 import engine_pb2
from chorus_workers import convert
from chorus_workers.config import FAKE_MODEL_PREFIX, WorkerConfig
from chorus_workers.engine.client import AsyncEngine
from chorus_workers.engine.request import Refusal, RefusalReason, Refused
from chorus_workers.engine.stream import EngineDeadError
from chorus_workers.grpc_server import EngineServer
from chorus_workers.metrics import build_registry, push_forever
from chorus_workers.shards import ShardGroup

logger = logging.getLogger(__name__)

# Time for streams to say that the engine died, before the replica's process ends.
_LAST_WORDS_S = 0.1
# Time for calls on the worker's own port to finish. Serve has drained its own calls before.
_GRPC_GRACE_S = 5.0


class Worker:
    """Generates tokens for prompts.

    Inside a Serve replica, the replica's process ends as soon as its engine fails, so that Serve starts a new one
    without waiting for a health check.
    """

    async def __init__(self, config: WorkerConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        """Loads the model and opens the gRPC port.

        Errors: EngineStartError, with what is wrong in the checkpoint or the configuration; EngineDeadError if the
        engine ends as soon as it has started; RuntimeError if the port can't be had.
        """
        self._config = config
        self._server: EngineServer | None = None
        self._pushing: asyncio.Task[None] | None = None
        self._refused_at_edge: Counter[str] = Counter()
        self._shards: ShardGroup | None = None
        self._engine = await self._start_engine()
        self._engine.on_death = self._on_engine_death
        self._registry = build_registry(self._engine, self._refused_at_edge)
        try:
            # It may have died while nobody was to be told.
            self._engine.check_health()
            await self._open_port()
        except BaseException:
            await self.shutdown()
            raise
        if config.metrics_actor is not None:
            push = push_forever(config.metrics_actor, "worker", _replica_id(), self.metrics_page)
            self._pushing = asyncio.create_task(push)

    @property
    def grpc_address(self) -> str | None:
        """host:port of the worker's own services; None if they are off."""
        return self._server.address if self._server else None

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateResponse]:
        """Streams the answer; closing the iterator ends the request.

        A refusal is the only message of its stream. Errors: EngineDeadError in the middle of an answer, which another
        worker can continue.
        """
        try:
            stream = self._engine.submit(convert.request_from_pb(request, self._engine.info))
        except Refused as refused:
            self._refused_at_edge[refused.refusal.reason.name.lower()] += 1
            yield convert.refusal_to_pb(refused.refusal)
            return
        has_begun = False
        try:
            while True:
                chunk = await stream.read()
                has_begun = True
                yield convert.chunk_to_pb(chunk)
                if chunk.finish_reason is not None:
                    return
        except Refused as refused:
            yield convert.refusal_to_pb(refused.refusal)
        except EngineDeadError:
            if has_begun:
                raise
            yield convert.refusal_to_pb(Refusal(RefusalReason.UNAVAILABLE, "the worker's engine has failed"))
        finally:
            stream.close()

    async def generate_serialized(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[bytes]:
        """As `generate`, for Serve's handles: they would pickle each message, at five times the cost."""
        async with aclosing(self.generate(request)) as responses:  # type: ignore[type-var]
            async for response in responses:
                yield response.SerializeToString()

    async def abort(self, request: engine_pb2.AbortRequest) -> engine_pb2.AbortResponse:
        """Ends a running request; its stream ends with FINISH_REASON_ABORT. An unknown id is not an error."""
        self._engine.abort(request.request_id)
        return engine_pb2.AbortResponse()

    async def model_info(self, request: engine_pb2.GetModelInfoRequest) -> engine_pb2.ModelInfo:
        return convert.info_to_pb(self._engine.info, self._config.served_model_name)

    async def load(self, request: engine_pb2.GetLoadRequest) -> engine_pb2.EngineLoad:
        """How busy the engine is; at most 0.25 s old."""
        return convert.load_to_pb(self._engine.load)

    def record_routing_stats(self) -> dict[str, float]:
        """What Serve passes on to request routers."""
        load = self._engine.load
        return {
            "num_running": load.num_running,
            "num_waiting": load.num_waiting,
            "num_outstanding_tokens": load.num_outstanding_tokens,
            "kv_usage": load.kv_usage,
        }

    def metrics_page(self) -> str:
        """This worker's metrics in Prometheus's text format."""
        return generate_latest(self._registry).decode()

    async def check_health(self) -> None:
        """Errors: EngineDeadError."""
        self._engine.check_health()

    async def shutdown(self) -> None:
        """Closes the port, ends the engine process, and with it every stream that is still open."""
        if self._pushing is not None:
            self._pushing.cancel()
        if self._server is not None:
            await self._server.stop(_GRPC_GRACE_S)
        if self._shards is not None:
            self._shards.stop_watching()
        await self._engine.close()
        if self._shards is not None:
            self._shards.close()

    def __del__(self) -> Coroutine[None, None, None] | None:
        """Serve calls this when it stops a replica, and awaits what comes back."""
        if not hasattr(self, "_engine") or self._engine.is_closed:
            return None
        return self.shutdown()

    async def _start_engine(self) -> AsyncEngine:
        if self._config.num_shards == 1 or self._config.model.startswith(FAKE_MODEL_PREFIX):
            return await AsyncEngine.start(self._config)
        self._shards = shards = ShardGroup.start(self._config)
        try:
            engine = await shards.watch_start(asyncio.create_task(AsyncEngine.start(shards.config)))
        except BaseException:
            shards.close()
            raise
        # Without its followers the engine only finds out in its next step.
        shards.on_death(lambda _: engine.kill())
        return engine

    async def _open_port(self) -> None:
        if self._config.grpc_port is not None:
            self._server = await EngineServer.start(self, self._config)
            logger.info("EngineService and VllmEngine listen on %s", self._server.address)

    def _on_engine_death(self, reason: str) -> None:
        loop = asyncio.get_running_loop()
        if self._server is not None:
            self._last_words = loop.create_task(self._server.set_serving(False))
        if _in_serve_replica():
            logger.critical("the engine failed, this replica ends: %s", reason)
            loop.call_later(_LAST_WORDS_S, os._exit, 1)


def _in_serve_replica() -> bool:
    # A replica's process has imported Serve; no other one need do so for this question.
    serve = sys.modules.get("ray.serve")
    if serve is None:
        return False
    try:
        serve.get_replica_context()
    except serve.exceptions.RayServeException:
        return False
    return True


def _replica_id() -> str:
    """Serve's id of this replica; outside of Serve, the process's."""
    if not _in_serve_replica():
        return str(os.getpid())
    unique_id: str = sys.modules["ray.serve"].get_replica_context().replica_id.unique_id
    return unique_id
