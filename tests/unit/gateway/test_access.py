"""With API keys, everything but health is closed, over HTTP and gRPC alike."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import grpc
import httpx
import openai
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from tests.unit.gateway.conftest import GatewayMethods, serve_grpc

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import Scope, new_key
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.health import HealthMethods
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

BODY: dict[str, Any] = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}
REQUEST = chat_pb2.ChatCompletionRequest(
    model="fake-model", messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")]
)
KEYS = {
    "alice": new_key("laptop", "alice"),
    "bob": new_key("bob"),
    "scraper": new_key("scraper", scopes=[Scope.METRICS]),
    "both": new_key("both", scopes=[Scope.METRICS, Scope.INFERENCE]),
    "old": new_key("old"),
}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    entries = [entry + ("  expires: 2020-01-01\n" if name == "old" else "") for name, (_, entry) in KEYS.items()]
    path.write_text("keys:\n" + "".join(entries))
    return path


@pytest.fixture
def access(key_file: Path) -> Access:
    return Access(KeyFile(key_file))


@pytest.fixture
def closed_app(service: ChatService, access: Access) -> FastAPI:
    return build_http_app(service, access=access)


@pytest.fixture
async def closed(closed_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=closed_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def closed_stub(service: ChatService, access: Access) -> AsyncIterator[Any]:
    async with serve_grpc(GatewayMethods(service, access=access)) as channel:
        yield chat_pb2_grpc.ChatServiceStub(channel)  # type: ignore[no-untyped-call]


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        for method in getattr(route, "methods", ()):
            yield method, route.path.replace("{model:path}", "fake-model")  # type: ignore[attr-defined]


async def test_every_route_but_health_is_closed(closed_app: FastAPI, closed: httpx.AsyncClient) -> None:
    seen = set()
    for method, path in routes(closed_app):
        response = await closed.request(method, path, json=BODY if method == "POST" else None)
        seen.add(path)
        if path == "/health":
            assert response.status_code == 200
            continue
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"
        assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"
        assert "x-request-id" in response.headers
    assert {"/v1/chat/completions", "/v1/models", "/metrics", "/docs", "/openapi.json", "/health"} <= seen


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/",
        "//health",
        "/health/",
        "/Health",
        "/health/../v1/models",
        "/health;/v1/models",
        "/v1/models?/health",
    ],
)
async def test_so_is_what_only_looks_like_health(closed: httpx.AsyncClient, path: str) -> None:
    assert (await closed.get(path)).status_code == 401


@pytest.mark.parametrize("host", ["gateway/health?", "gateway/health#", "health"])
async def test_the_host_header_opens_nothing(closed: httpx.AsyncClient, host: str) -> None:
    assert (await closed.get("/v1/models", headers={"host": host})).status_code == 401


async def test_a_websocket_is_closed_too(closed_app: FastAPI) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    await closed_app(scope, create_autospec(lambda: None), send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "with an API key only"),
        ("", "with an API key only"),
        ("Bearer", "with an API key only"),
        ("Bearer  ", "with an API key only"),
        (f"Basic {KEYS['alice'][0]}", "with an API key only"),
        (KEYS["alice"][0], "with an API key only"),
        ("Bearer wrong", "not known here"),
        (f"Bearer {KEYS['alice'][0]}x", "not known here"),
        (f"Bearer {KEYS['alice'][0][:-1]}", "not known here"),
        (bearer("old")["authorization"], "has expired"),
    ],
    # Keys are new in every process, and would be in the names.
    ids=["none", "empty", "no key", "blank", "basic", "no scheme", "unknown", "longer", "shorter", "expired"],
)
async def test_what_is_no_key_in_force(
    closed: httpx.AsyncClient, closed_stub: Any, engine: FakeEngineClient, authorization: str | None, message: str
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    response = await closed.post("/v1/chat/completions", json=BODY, headers=headers)
    assert response.status_code == 401
    assert message in response.json()["error"]["message"]
    assert KEYS["alice"][0][:20] not in response.text
    metadata = tuple(headers.items())
    for call in (
        closed_stub.CreateChatCompletion(REQUEST, metadata=metadata),
        closed_stub.ListModels(chat_pb2.ListModelsRequest(), metadata=metadata),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert message in str(error.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as error:
        _ = [chunk async for chunk in closed_stub.StreamChatCompletion(REQUEST, metadata=metadata)]
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert engine.requests == []


async def test_a_key_opens_what_its_scopes_say(closed: httpx.AsyncClient, closed_stub: Any) -> None:
    assert (await closed.get("/metrics", headers=bearer("scraper"))).status_code == 200
    assert (await closed.get("/v1/models", headers=bearer("scraper"))).status_code == 403
    assert (await closed.get("/v1/models", headers=bearer("alice"))).status_code == 200
    assert (await closed.get("/nowhere", headers=bearer("alice"))).status_code == 404
    refused = await closed.get("/metrics", headers=bearer("alice"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    for path in ("/metrics", "/v1/models"):
        assert (await closed.get(path, headers=bearer("both"))).status_code == 200
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await closed_stub.CreateChatCompletion(REQUEST, metadata=tuple(bearer("scraper").items()))
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "scope 'inference'" in str(error.value.details())


async def test_the_scheme_s_case_does_not_matter(closed: httpx.AsyncClient) -> None:
    headers = {"authorization": f"bEARER   {KEYS['alice'][0]} "}
    assert (await closed.get("/v1/models", headers=headers)).status_code == 200


async def test_openai_s_client_sends_its_key(closed: httpx.AsyncClient) -> None:
    for key, refused in ((KEYS["alice"][0], False), ("sk-wrong", True)):
        client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=key, http_client=closed, max_retries=0)
        if refused:
            with pytest.raises(openai.AuthenticationError, match="not known here"):
                await client.chat.completions.create(model="fake-model", messages=[{"role": "user", "content": "Hi"}])
        else:
            answer = await client.chat.completions.create(
                model="fake-model", messages=[{"role": "user", "content": "Hi"}]
            )
            assert answer.choices[0].message.content


async def test_engines_keep_owners_apart(
    closed: httpx.AsyncClient, closed_stub: Any, http: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    await closed.post("/v1/chat/completions", json=BODY, headers=bearer("alice"))
    await closed_stub.CreateChatCompletion(REQUEST, metadata=tuple(bearer("alice").items()))
    await closed.post("/v1/chat/completions", json=BODY | {"stream": True}, headers=bearer("bob"))
    await http.post("/v1/chat/completions", json=BODY)
    assert [request.cache_salt for request in engine.requests] == ["alice", "alice", "bob", ""]


async def test_health_is_open_over_grpc(service: ChatService) -> None:
    health = HealthMethods()
    health._service = service
    answer = await health.Check(health_pb2.HealthCheckRequest(), create_autospec(grpc.aio.ServicerContext))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_rotation_takes_no_restart(closed: httpx.AsyncClient, key_file: Path) -> None:
    fresh, entry = new_key("fresh")
    key_file.write_text(f"keys:\n{entry}")
    await asyncio.sleep(1.05)
    assert (await closed.get("/v1/models", headers={"authorization": f"Bearer {fresh}"})).status_code == 200
    assert (await closed.get("/v1/models", headers=bearer("alice"))).status_code == 401
