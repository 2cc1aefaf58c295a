"""EngineService on a gRPC port of the worker's own, with health and reflection, for gateways outside of Ray Serve.

Between gateway and worker a refusal is a message; here it is the call's status, before any message:

    INVALID_ARGUMENT → INVALID_ARGUMENT     trailing metadata `field`: the field at fault
    OVERLOADED       → RESOURCE_EXHAUSTED   trailing metadata `retry-after-ms`
    UNAVAILABLE      → UNAVAILABLE
    DEADLINE         → DEADLINE_EXCEEDED

A call that is cancelled, or past its deadline, ends its request.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chorus_protos.v1 import engine_pb2, engine_pb2_grpc
from chorus_workers.engine.stream import EngineDeadError

SERVICE_NAME = engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name
# A prompt of 131,072 ids is below 0.5 MB; a logit bias or a list of stop tokens is bounded in convert.py.
_MAX_REQUEST_BYTES = 4 << 20
_STATUS = {
    engine_pb2.REFUSAL_REASON_INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    engine_pb2.REFUSAL_REASON_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    engine_pb2.REFUSAL_REASON_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    engine_pb2.REFUSAL_REASON_DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class TokenService(Protocol):
    """What the servicer asks of a worker."""

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateResponse]: ...
    async def abort(self, request: engine_pb2.AbortRequest) -> engine_pb2.AbortResponse: ...
    async def model_info(self, request: engine_pb2.GetModelInfoRequest) -> engine_pb2.ModelInfo: ...
    async def load(self, request: engine_pb2.GetLoadRequest) -> engine_pb2.EngineLoad: ...


Context = grpc.aio.ServicerContext[Any, Any]


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """A worker's methods as gRPC methods."""

    def __init__(self, worker: TokenService) -> None:
        self._worker = worker

    async def Generate(
        self, request: engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[engine_pb2.GenerateResponse]:
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            deadline = time.time() + remaining_s
            given = request.deadline_unix_s if request.HasField("deadline_unix_s") else deadline
            request.deadline_unix_s = min(given, deadline)
        try:
            async with aclosing(self._worker.generate(request)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    if response.HasField("refusal"):
                        await _abort(context, response.refusal)
                    yield response
        except EngineDeadError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker's engine has failed")

    async def Abort(self, request: engine_pb2.AbortRequest, context: Context) -> engine_pb2.AbortResponse:
        return await self._worker.abort(request)

    async def GetModelInfo(self, request: engine_pb2.GetModelInfoRequest, context: Context) -> engine_pb2.ModelInfo:
        return await self._worker.model_info(request)

    async def GetLoad(self, request: engine_pb2.GetLoadRequest, context: Context) -> engine_pb2.EngineLoad:
        return await self._worker.load(request)


class EngineServer:
    """A running gRPC server for one worker."""

    def __init__(self, server: grpc.aio.Server, health_servicer: Any, address: str) -> None:
        self._server = server
        self._health = health_servicer
        # host:port
        self.address = address

    @classmethod
    async def start(cls, worker: TokenService, host: str, port: int) -> "EngineServer":
        """Listens on `port`, or on any free one if that is 0. Errors: RuntimeError if the port can't be had."""
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", _MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)]
        )
        engine_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(worker), server)
        health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        bound_port = server.add_insecure_port(f"{host}:{port}")
        await server.start()
        engine_server = cls(server, health_servicer, f"{host}:{bound_port}")
        await engine_server.set_serving(True)
        return engine_server

    async def set_serving(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and gives running ones `grace_s` to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


async def _abort(context: Context, refusal: engine_pb2.Refusal) -> None:
    metadata: list[tuple[str, str]] = []
    if refusal.field:
        metadata.append(("field", refusal.field))
    if refusal.HasField("retry_after_s"):
        metadata.append(("retry-after-ms", str(round(refusal.retry_after_s * 1000))))
    await context.abort(_STATUS[refusal.reason], refusal.message, tuple(metadata))
