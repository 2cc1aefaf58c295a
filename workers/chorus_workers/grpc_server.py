"""A worker's own gRPC port: EngineService, vLLM's token-level service, health and reflection."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chorus_protos.v1 import engine_pb2_grpc
from chorus_protos.vllm import vllm_engine_pb2_grpc
from chorus_workers import servicer
from chorus_workers.config import WorkerConfig
from chorus_workers.servicer import EngineServicer, TokenService
from chorus_workers.vllm import servicer as vllm_servicer
from chorus_workers.vllm.servicer import VllmEngineServicer

_SERVICES = (servicer.SERVICE_NAME, vllm_servicer.SERVICE_NAME)
# A prompt of 131,072 ids is below 0.5 MB; a logit bias or a list of stop tokens is bounded in convert.py.
_MAX_REQUEST_BYTES = 4 << 20


class EngineServer:
    """A running gRPC server for one worker."""

    def __init__(self, server: grpc.aio.Server, health_servicer: Any, address: str) -> None:
        self._server = server
        self._health = health_servicer
        # host:port
        self.address = address

    @classmethod
    async def start(cls, worker: TokenService, config: WorkerConfig) -> "EngineServer":
        """Listens on `config.grpc_port`, or on any free one if that is 0.

        Errors: RuntimeError if the port can't be had.
        """
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", _MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)]
        )
        engine_pb2_grpc.add_EngineServiceServicer_to_server(EngineServicer(worker), server)
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(VllmEngineServicer(worker, config), server)
        health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        bound_port = server.add_insecure_port(f"{config.grpc_host}:{config.grpc_port}")
        await server.start()
        engine_server = cls(server, health_servicer, f"{config.grpc_host}:{bound_port}")
        await engine_server.set_serving(True)
        return engine_server

    async def set_serving(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *_SERVICES):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and gives running ones `grace_s` to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
