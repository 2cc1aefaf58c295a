"""Health, models, metrics, OpenAPI, and paths that don't exist."""

import asyncio
from typing import Any
from unittest.mock import create_autospec

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from tests.support.chat import encode

from chorus_cluster.errors import Unavailable
from chorus_cluster.gateway import chat as chat_module
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.health import HealthMethods
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import engine_pb2

BODY: dict[str, Any] = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}


async def test_health_follows_the_workers(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    assert (await http.get("/health")).json() == {"status": "ok"}
    engine.refusal = Unavailable()
    response = await http.get("/health")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"


async def test_health_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(FakeEngineClient):
        async def model_info(self) -> engine_pb2.ModelInfo:
            await asyncio.sleep(0.2)
            return await FakeEngineClient.model_info(self)

    monkeypatch.setattr(chat_module, "_HEALTH_TIMEOUT_S", 0.01)
    app = build_http_app(ChatService(Late([])))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        assert (await client.get("/health")).status_code == 503
        # Who asks next shares the answer that is under way.
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "fake-model"


async def test_a_long_service_name_does_not_drown_the_status(service: ChatService) -> None:
    class Health(HealthMethods):
        _service = service

    context = create_autospec(grpc.aio.ServicerContext, instance=True)
    await Health().Check(health_pb2.HealthCheckRequest(service="x" * 20_000), context)
    context.set_code.assert_called_once_with(grpc.StatusCode.NOT_FOUND)
    (details,) = context.set_details.call_args.args
    assert len(details) < 1000


async def test_models(http: httpx.AsyncClient, service: ChatService) -> None:
    model = {
        "id": "fake-model",
        "object": "model",
        "created": service.started_at,
        "owned_by": "chorus",
        "max_model_len": 4096,
    }
    assert (await http.get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await http.get("/v1/models/fake-model")).json() == model
    missing = await http.get("/v1/models/some/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_metrics(http: httpx.AsyncClient, service: ChatService, engine: FakeEngineClient) -> None:
    await http.post("/v1/chat/completions", json=BODY | {"stream": True})
    await http.post("/v1/chat/completions", json=BODY | {"model": "x"})
    # A stray end token after the message's: one repair.
    engine.script = encode("<|channel|>final<|message|>Hi<|end|><|end|><|return|>")
    await http.post("/v1/chat/completions", json=BODY)
    await http.get("/nowhere")
    service.metrics.on_engine_retry("worker_lost")
    page = await http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    for line in (
        'chorus_gateway_requests_total{route="/v1/chat/completions",status="200"} 2.0',
        'chorus_gateway_requests_total{route="/v1/chat/completions",status="404"} 1.0',
        'chorus_gateway_requests_total{route="other",status="404"} 1.0',
        'chorus_gateway_chats_total{outcome="stop"} 2.0',
        'chorus_gateway_chats_total{outcome="model_not_found"} 1.0',
        "chorus_gateway_chats_running 0.0",
        "chorus_gateway_time_to_first_token_seconds_count 2.0",
        'chorus_gateway_engine_retries_total{reason="worker_lost"} 1.0',
    ):
        assert line in page.text.splitlines()
    num_prompt = sum(len(request.prompt_token_ids) for request in engine.requests)
    assert f"chorus_gateway_prompt_tokens_total {num_prompt:.1f}" in page.text
    assert 'chorus_gateway_harmony_repairs_total{repair="redundant_end"} 2.0' in page.text


async def test_metrics_page_of_the_cluster(service: ChatService) -> None:
    async def page() -> bytes:
        return b"everything 1\n"

    app = build_http_app(service, metrics_page=page)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        assert (await client.get("/metrics")).text == "everything 1\n"


async def test_unknown_paths_and_methods_have_openai_bodies(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v2/chat")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_openapi_resolves(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    components = schema["components"]["schemas"]
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatCompletionRequest"}
    assert set(components["ChatCompletionRequest"]["required"]) == {"model", "messages"}

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    found = references(schema)
    assert len(found) > 5
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= set(components)
    assert (await http.get("/docs")).status_code == 200


async def test_openapi_says_what_is_answered(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    paths = schema["paths"]
    chat = paths["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert [(p["in"], p["name"]) for p in chat["parameters"]] == [("header", "x-request-timeout-s")]
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    assert set(paths["/v1/models/{model}"]["get"]["responses"]) == {"200", "401", "403", "404", "503"}
    assert set(paths["/v1/models"]["get"]["responses"]) == {"200", "401", "403", "503"}
    # FastAPI's own errors, which no route of ours answers.
    assert not [name for name in schema["components"]["schemas"] if "ValidationError" in name]
