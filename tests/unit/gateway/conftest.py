"""A gateway over a fake engine, reachable in every way a client has."""

import asyncio
import contextlib
import datetime
import inspect
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.chat import ANSWER, encode

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.call import GrpcMethods
from chorus_cluster.gateway.grpc.chat import GrpcChatMethods
from chorus_cluster.gateway.grpc.completions import GrpcCompletionMethods
from chorus_cluster.gateway.grpc.health import HealthMethods
from chorus_cluster.gateway.grpc.responses.methods import GrpcResponsesMethods
from chorus_cluster.gateway.grpc.service import add_chat_service, add_completion_service, add_responses_service
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, chat_pb2_grpc, completion_pb2, completion_pb2_grpc, responses_pb2

_SERVICES = (
    chat_pb2.DESCRIPTOR.services_by_name["ChatService"],
    completion_pb2.DESCRIPTOR.services_by_name["CompletionService"],
    responses_pb2.DESCRIPTOR.services_by_name["ResponsesService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient(encode(ANSWER))


@pytest.fixture
def service(engine: FakeEngineClient) -> ChatService:
    return ChatService(engine, today=lambda: datetime.date(2025, 6, 28))


@pytest.fixture
def app(service: ChatService) -> FastAPI:
    return build_http_app(service, max_body_bytes=1_000_000)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def server_url(app: FastAPI) -> AsyncIterator[str]:
    """The application behind a real server, for what only a socket shows."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    (listening,) = server.servers[0].sockets
    # Small, so that a client that doesn't read is felt soon.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
    port = listening.getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


class GatewayMethods(GrpcChatMethods, GrpcCompletionMethods, GrpcResponsesMethods, HealthMethods):
    """All gRPC methods, as a gateway replica has them."""


class _Servicer:
    """Calls the methods as Serve does."""

    def __init__(self, methods: GrpcMethods) -> None:
        for service in _SERVICES:
            for method in service.methods:
                handler = getattr(methods, method.name)
                setattr(self, method.name, _streaming(handler) if method.server_streaming else _unary(handler))


def _unary(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def call(request: Any, context: Any) -> Any:
        return await _ask(handler, request, context)

    return call


def _streaming(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(_ask(handler, request, context)) as chunks:
            async for chunk in chunks:
                yield chunk

    return call


def _ask(handler: Callable[..., Any], request: Any, context: Any) -> Any:
    takes_context = "grpc_context" in inspect.signature(handler).parameters
    return handler(request, grpc_context=context) if takes_context else handler(request)


@contextlib.asynccontextmanager
async def grpc_server(methods: GrpcMethods, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    """A server of these methods; its host:port."""
    server = grpc.aio.server()
    servicer: Any = _Servicer(methods)
    add_chat_service(servicer, server)
    add_completion_service(servicer, server)
    add_responses_service(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    where = "127.0.0.1:0"
    port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@contextlib.asynccontextmanager
async def serve_grpc(methods: GrpcMethods) -> AsyncIterator[grpc.aio.Channel]:
    """A server of these methods, and a way to it."""
    async with grpc_server(methods) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
async def grpc_channel(service: ChatService) -> AsyncIterator[grpc.aio.Channel]:
    async with serve_grpc(GatewayMethods(service, max_request_bytes=1_000_000)) as channel:
        yield channel


@pytest.fixture
def chat_stub(grpc_channel: grpc.aio.Channel) -> "chat_pb2_grpc.ChatServiceAsyncStub":
    return chat_pb2_grpc.ChatServiceStub(grpc_channel)  # type: ignore[return-value]


@pytest.fixture
def completion_stub(grpc_channel: grpc.aio.Channel) -> "completion_pb2_grpc.CompletionServiceAsyncStub":
    return completion_pb2_grpc.CompletionServiceStub(grpc_channel)  # type: ignore[return-value]
