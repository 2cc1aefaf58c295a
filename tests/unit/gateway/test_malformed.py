"""Bodies that can't be read at all, what only protobuf can get wrong, and what stays whole beside them."""

import asyncio
import json
from typing import Any

import grpc
import httpx
import pytest
from tests.support.chat import eventually
from tests.support.chat_pb import chat_to_pb
from tests.support.client_texts import assert_tells_nothing_of_the_inside
from tests.unit.gateway.bad_input import BODIES, CHAT, Stub
from tests.unit.gateway.test_bad_input import TABLE, function

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.openai.parse import parse_chat_body
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2

BODY = BODIES[CHAT]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (chat_pb2.ChatCompletionRequest(reasoning_effort=9), "reasoning_effort"),  # type: ignore[arg-type]
        (chat_pb2.ChatCompletionRequest(tool_choice=9), "tool_choice"),  # type: ignore[arg-type]
        (chat_pb2.ChatCompletionRequest(temperature=float("nan")), "temperature"),
        (chat_pb2.ChatCompletionRequest(top_p=float("inf")), "top_p"),
        (chat_pb2.ChatCompletionRequest(logit_bias={3: float("nan")}), "logit_bias.3"),
        (
            chat_pb2.ChatCompletionRequest(tools=[chat_pb2.FunctionTool(name="f", parameters_json="{")]),
            "tools[0].function.parameters",
        ),
        (
            chat_pb2.ChatCompletionRequest(
                tools=[chat_pb2.FunctionTool(name="f", parameters_json='{"a":' * 5000 + "1" + "}" * 5000)]
            ),
            "tools[0].function.parameters",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_only_protobuf_can_say(chat_stub: Stub, change: chat_pb2.ChatCompletionRequest, field: str) -> None:
    request = chat_to_pb(BODY)
    request.MergeFrom(change)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.CreateChatCompletion(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith(f"{field}: ")


MALFORMED = {
    "empty": b"",
    "cut": b'{"model": "fake-model"',
    "trailing": b'{"model": "fake-model"} x',
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "encoded surrogate": b'{"model": "\xed\xa0\x80"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "NaN": b'{"temperature": NaN}',
    "huge number": b'{"seed": ' + b"9" * 6000 + b"}",
    "deep arrays": b"[" * 50_000,
    "deep objects": b'{"a":' * 20_000,
    "array": b"[]",
    "string": b'"Hi"',
    "null": b"null",
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_bodies(http: httpx.AsyncClient, body: bytes, path: str) -> None:
    response = await http.post(path, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None
    assert "JSON" in error["message"]
    assert_tells_nothing_of_the_inside(error["message"])


async def test_infinite_numbers(http: httpx.AsyncClient) -> None:
    body = json.dumps(BODY)[:-1] + ', "temperature": 1e999}'
    response = await http.post(CHAT, content=body)
    assert response.json()["error"]["param"] == "temperature"


async def test_deep_tool_schema_is_refused_by_name(http: httpx.AsyncClient) -> None:
    schema: dict[str, Any] = {}
    for _ in range(150):
        schema = {"type": "object", "properties": {"a": schema}}
    response = await http.post(CHAT, json=BODY | {"tools": [function(parameters=schema)]})
    assert response.status_code == 400


ENDLESS = {
    "itself": {"$ref": "#"},
    "a loop": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a tree": {"type": "object", "properties": {"next": {"type": "array", "items": {"$ref": "#"}}}},
    "a regex": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+(b|b*)*$"}}},
    "nowhere": {"$ref": "https://example.com/schema"},
    "no schema": {"type": 5, "properties": [], "enum": None, "required": {"a": 1}},
    "an odd type": {"type": ["object", "null"], "properties": {"a": {"type": "widget"}, "b": True}},
}


@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS.keys())
async def test_a_tools_schema_is_shown_whatever_it_means(http: httpx.AsyncClient, schema: dict[str, Any]) -> None:
    """Nothing follows it, compiles it or fetches it."""
    async with asyncio.timeout(5):
        response = await http.post(CHAT, json=BODY | {"tools": [function(parameters=schema)]})
    assert response.status_code == 200, response.text


async def test_other_streams_go_on(service: ChatService, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    running = asyncio.create_task(http.post(CHAT, json=BODY | {"stream": True}))
    await eventually(lambda: engine.num_running == 1)
    for bad in TABLE:
        await http.post(bad.path, json=bad.body)
    for body in MALFORMED.values():
        await http.post(CHAT, content=body)
    engine.gate.set()
    assert (await running).text.endswith("data: [DONE]\n\n")
    assert service.metrics.running._value.get() == 0


def test_harmless_values_parse() -> None:
    parsed = parse_chat_body(BODY | {"logprobs": False, "top_logprobs": 0, "top_k": -1, "max_tokens": 5})
    assert (parsed.request.top_logprobs, parsed.request.top_k, parsed.request.max_tokens) == (None, 0, 5)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    parsed = parse_chat_body({"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert parsed.request.messages[0].content == "ab"
