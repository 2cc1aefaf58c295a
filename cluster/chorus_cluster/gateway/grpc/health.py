"""`grpc.health.v1` on the gateway's gRPC port: it serves when a worker answers.

Serve's gRPC ingress calls methods by the name of their RPC.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from chorus_cluster.errors import ServiceError
from chorus_cluster.gateway.chat import ChatService

# The names that clients may ask for; the empty one is the server as a whole.
SERVICES = ("", "chorus.v1.ChatService", "chorus.v1.CompletionService", "chorus.v1.ResponsesService")
WATCH_INTERVAL_S = 1.0


class HealthMethods:
    """A mixin over a chat service."""

    _service: ChatService

    async def Check(self, request: health_pb2.HealthCheckRequest, grpc_context: Any) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND for a service that isn't here."""
        if request.service not in SERVICES:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            # Without its name, which may be longer than what gRPC's trailers hold.
            grpc_context.set_details(f"unknown service; known are {', '.join(filter(None, SERVICES))}")
            # Beside a status, Serve's gRPC paths send no message.
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=await self._status())

    async def List(self, request: health_pb2.HealthListRequest) -> health_pb2.HealthListResponse:
        status = health_pb2.HealthCheckResponse(status=await self._status())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(SERVICES, status))

    async def Watch(self, request: health_pb2.HealthCheckRequest) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now, and again whenever it changes. A service that isn't here is SERVICE_UNKNOWN."""
        last: int | None = None
        while True:
            known = request.service in SERVICES
            status = await self._status() if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _status(self) -> int:
        try:
            await self._service.check_health()
        except ServiceError:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        return int(health_pb2.HealthCheckResponse.SERVING)
