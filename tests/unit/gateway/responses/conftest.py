"""A gateway with a store."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import openai
import pytest
from fastapi import FastAPI
from tests.unit.gateway.conftest import GatewayMethods, serve_grpc

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore
from chorus_protos.v1 import responses_pb2_grpc


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/store.sqlite3")
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> ResponseStore:
    return ResponseStore(database, ttl_s=1000.0)


@pytest.fixture
async def responses(service: ChatService, store: ResponseStore) -> AsyncIterator[ResponsesService]:
    responses = ResponsesService(service, store)
    yield responses
    assert responses.jobs is not None
    await responses.jobs.close()


@pytest.fixture
def app(service: ChatService, responses: ResponsesService) -> FastAPI:
    return build_http_app(service, responses=responses, max_body_bytes=1_000_000)


@pytest.fixture
async def client(server_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own, over a real connection."""
    async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def grpc_channel(service: ChatService, responses: ResponsesService) -> AsyncIterator[grpc.aio.Channel]:
    methods = GatewayMethods(service, responses=responses, max_request_bytes=1_000_000)
    async with serve_grpc(methods) as channel:
        yield channel


@pytest.fixture
def stub(grpc_channel: grpc.aio.Channel) -> "responses_pb2_grpc.ResponsesServiceAsyncStub":
    return responses_pb2_grpc.ResponsesServiceStub(grpc_channel)  # type: ignore[return-value]
