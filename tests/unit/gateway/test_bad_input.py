"""Bad input, the same through HTTP, gRPC and the parser that batch lines go through: one table.

Each row is a request in OpenAI's JSON. Where protobuf can say the same, it goes over gRPC too, and must meet the same
error code, field and message.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from tests.support.chat import eventually

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.parse import parse_chat_body
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

USER = {"role": "user", "content": "Hi"}
BODY: dict[str, Any] = {"model": "fake-model", "messages": [USER]}


@dataclass(frozen=True)
class Bad:
    fields: dict[str, Any]
    # The field at fault; a part of the message beside it.
    param: str
    says: str
    code: str = "invalid_value"
    # False: protobuf's types don't let it be said.
    over_grpc: bool = True
    status: int = 400


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | fields}


def call(**fields: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"} | fields}
    return {"role": "assistant", "tool_calls": [call]}


TABLE = [
    # Values and limits: the validator's.
    Bad({"model": "gpt-9"}, "model", "does not exist", "model_not_found", status=404),
    Bad({"model": ""}, "model", "does not exist", "model_not_found", status=404),
    Bad({"messages": []}, "messages", "at least one message"),
    Bad({"messages": [USER] * 2000}, "messages", "2000", "context_length_exceeded"),
    Bad({"messages": [USER] * 4097}, "messages", "4097 elements; at most 4096"),
    Bad({"messages": [{"role": "user", "content": " a" * 5000}]}, "messages", "4096", "context_length_exceeded"),
    Bad({"messages": [{"role": "user", "content": "a" * 200_000}]}, "messages", "200000", "context_length_exceeded"),
    Bad({"max_completion_tokens": 4096}, "max_completion_tokens", "4096", "context_length_exceeded"),
    Bad({"max_completion_tokens": 0}, "max_completion_tokens", "from 1 to"),
    Bad({"max_completion_tokens": 2**31}, "max_completion_tokens", "from 1 to"),
    Bad({"temperature": 2.5}, "temperature", "from 0 to 2, not 2.5"),
    Bad({"temperature": -0.5}, "temperature", "from 0 to 2"),
    Bad({"top_p": 1.5}, "top_p", "from 0 to 1"),
    Bad({"top_k": 2**31}, "top_k", "0 (off) or positive"),
    Bad({"min_p": 2.0}, "min_p", "from 0 to 1"),
    Bad({"frequency_penalty": -2.5}, "frequency_penalty", "from -2 to 2"),
    Bad({"presence_penalty": 2.5}, "presence_penalty", "from -2 to 2"),
    Bad({"repetition_penalty": 0.0}, "repetition_penalty", "from 0.01 to 100"),
    Bad({"logit_bias": {"201088": 1.0}}, "logit_bias", "token 201088; the vocabulary ends at 201087"),
    Bad({"logit_bias": {"4294967295": 1.0}}, "logit_bias", "token 4294967295"),
    Bad({"logit_bias": {"7": 100.5}}, "logit_bias.7", "from -100 to 100"),
    Bad({"logit_bias": {str(i): 1.0 for i in range(1025)}}, "logit_bias", "1025 elements; at most 1024"),
    Bad({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20, not 21"),
    Bad({"stop": ["a", "b", "c", "d", "e"]}, "stop", "5 elements; at most 4"),
    Bad({"stop": ["a", ""]}, "stop[1]", "not be empty"),
    Bad({"stop": ["a" * 257]}, "stop[0]", "at most 256"),
    Bad({"tools": [function()] * 513}, "tools", "513 elements; at most 512"),
    # The conversation: harmony's.
    Bad({"tools": [function(name="two words")]}, "tools[0].function.name", "1 to 64 characters"),
    Bad({"tools": [function(name="<|end|>")]}, "tools[0].function.name", "1 to 64 characters"),
    Bad({"messages": [USER, call(name="a<|call|>")]}, "messages[1].tool_calls[0].function.name", "1 to 64 characters"),
    Bad({"messages": [{"role": "tool", "content": "22"}]}, "messages[0].tool_call_id", "does not match"),
    Bad(
        {"messages": [USER, {"role": "tool", "content": "22", "tool_call_id": "call_9"}]},
        "messages[1].tool_call_id",
        "does not match",
    ),
    Bad({"messages": [{"role": "user", "content": "x", "name": "a b"}]}, "messages[0].name", "1 to 64 characters"),
    # Wrong types and missing fields.
    Bad({"model": None}, "model", "is required", over_grpc=False),
    Bad({"model": 5}, "model", "must be a string", over_grpc=False),
    Bad({"messages": None}, "messages", "is required", over_grpc=False),
    Bad({"messages": "Hi"}, "messages", "must be an array", over_grpc=False),
    Bad({"messages": ["Hi"]}, "messages[0]", "must be an object", over_grpc=False),
    Bad({"messages": [{"content": "Hi"}]}, "messages[0].role", "is required", over_grpc=False),
    Bad({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "'assistant' or 'tool'"),
    Bad({"messages": [{"role": "user"}]}, "messages[0].content", "is required", over_grpc=False),
    Bad(
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
        "must be a string or an array",
        over_grpc=False,
    ),
    Bad(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[0].content[0].type",
        "must be 'text'",
        over_grpc=False,
    ),
    Bad(
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "is required",
        over_grpc=False,
    ),
    Bad(
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}]},
        "messages[1].tool_calls[0].function.arguments",
        "is required",
        over_grpc=False,
    ),
    Bad({"temperature": "1"}, "temperature", "must be a number", over_grpc=False),
    Bad({"temperature": True}, "temperature", "must be a number", over_grpc=False),
    Bad({"max_tokens": 0}, "max_tokens", "from 1 to", over_grpc=False),
    Bad({"max_tokens": 5.0}, "max_tokens", "must be an integer", over_grpc=False),
    Bad({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "send one of them", over_grpc=False),
    Bad({"seed": 2**63}, "seed", "64-bit", over_grpc=False),
    Bad({"seed": 10**40}, "seed", "64-bit", over_grpc=False),
    Bad({"top_k": -2}, "top_k", "0 (off) or positive", over_grpc=False),
    Bad({"stream": "yes"}, "stream", "must be true or false", over_grpc=False),
    Bad({"stop": 5}, "stop", "must be a string or an array", over_grpc=False),
    Bad({"modalities": [5]}, "modalities[0]", "must be a string", over_grpc=False),
    Bad(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 20_000}]},
        "messages",
        "hold 20000 parts",
        over_grpc=False,
    ),
    Bad({"stop": ["a", 5]}, "stop[1]", "must be a string", over_grpc=False),
    Bad({"logit_bias": {"x": 1}}, "logit_bias", "keys must be token ids", over_grpc=False),
    Bad({"logit_bias": {"-1": 1}}, "logit_bias", "keys must be token ids", over_grpc=False),
    Bad({"logit_bias": {"1": "x"}}, "logit_bias.1", "must be a number", over_grpc=False),
    Bad({"top_logprobs": 5}, "top_logprobs", "'logprobs': true", over_grpc=False),
    Bad({"tools": [{"type": "custom"}]}, "tools[0].type", "must be 'function'", over_grpc=False),
    Bad({"tools": [function(parameters=[])]}, "tools[0].function.parameters", "must be an object"),
    Bad({"reasoning_effort": "minimal"}, "reasoning_effort", "'low', 'medium' or 'high'", over_grpc=False),
    # Known to OpenAI's clients, not served.
    Bad({"n": 0}, "n", "from 1 to 128"),
    Bad({"n": 129}, "n", "from 1 to 128"),
    Bad({"n": -1}, "n", "from 1 to 128", over_grpc=False),
    Bad({"n": 1.5}, "n", "must be an integer", over_grpc=False),
    Bad({"tool_choice": "required"}, "tool_choice", "there are no tools", over_grpc=False),
    Bad({"tool_choice": "any"}, "tool_choice", "'auto', 'none', 'required'", over_grpc=False),
    Bad({"tool_choice": {"type": "custom"}}, "tool_choice.type", "must be 'function'", over_grpc=False),
    Bad({"tool_choice": {"type": "function"}}, "tool_choice.function.name", "must be a string", over_grpc=False),
    Bad({"tool_choice": function(name="g")}, "tool_choice", "names 'g', which is not", over_grpc=False),
    Bad({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.mode", "'auto' or", over_grpc=False),
    Bad({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'", over_grpc=False),
    Bad(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        "must be an object",
        over_grpc=False,
    ),
    Bad(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "response_format.json_schema.name",
        "1 to 64 characters",
        over_grpc=False,
    ),
    Bad({"structured_outputs": {}}, "structured_outputs", "must hold one of", over_grpc=False),
    Bad({"structured_outputs": {"json": 5}}, "structured_outputs.json", "an object or a string", over_grpc=False),
    Bad({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "array of strings", over_grpc=False),
    Bad(
        {"structured_outputs": {"regex": "a" * 300_000}},
        "structured_outputs.regex",
        "at most 262144",
        over_grpc=False,
    ),
    Bad({"thinking_token_budget": -1}, "thinking_token_budget", "from 0 to", over_grpc=False),
    Bad({"service_tier": "gold"}, "service_tier", "must be 'auto'", over_grpc=False),
    Bad({"priority": 2**31}, "priority", "signed 32-bit", over_grpc=False),
    Bad({"modalities": ["text", "audio"]}, "modalities", "text alone", over_grpc=False),
    Bad({"audio": {"voice": "x"}}, "audio", "not supported", over_grpc=False),
    Bad({"functions": [{"name": "f"}]}, "functions", "use 'tools'", over_grpc=False),
    Bad({"function_call": "auto"}, "function_call", "use 'tool_choice'", over_grpc=False),
    Bad({"web_search_options": {}}, "web_search_options", "not supported", over_grpc=False),
    Bad({"verbosity": "low"}, "verbosity", "must be 'medium'", over_grpc=False),
    Bad({"stream_options": {"include_usage": True}}, "stream_options", "'stream': true", over_grpc=False),
    # Not known to anybody.
    Bad({"temprature": 1}, "temprature", "did you mean 'temperature'", over_grpc=False),
    Bad({"guided_json": {}}, "guided_json", "is not a known field", over_grpc=False),
]


def to_pb(body: dict[str, Any]) -> chat_pb2.ChatCompletionRequest:
    pb = chat_pb2.ChatCompletionRequest()
    for name, value in body.items():
        if name == "messages":
            pb.messages.extend(_message(message) for message in value)
        elif name == "tools":
            pb.tools.extend(
                chat_pb2.FunctionTool(
                    name=tool["function"]["name"], parameters_json=json.dumps(tool["function"].get("parameters", {}))
                )
                for tool in value
            )
        elif name == "logit_bias":
            for key, bias in value.items():
                pb.logit_bias[int(key)] = bias
        elif name == "stop":
            pb.stop.extend(value)
        elif name != "logprobs":
            setattr(pb, name, value)
    return pb


def _message(message: dict[str, Any]) -> chat_pb2.ChatMessage:
    known = {f"ROLE_{message['role'].upper()}"} & set(chat_pb2.Role.keys())
    return chat_pb2.ChatMessage(
        role=chat_pb2.Role.Value(known.pop()) if known else chat_pb2.ROLE_UNSPECIFIED,
        content=message.get("content", ""),
        name=message.get("name", ""),
        tool_call_id=message.get("tool_call_id", ""),
        tool_calls=[
            chat_pb2.ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
            for call in message.get("tool_calls", ())
        ],
    )


def name_of(bad: Bad) -> str:
    return json.dumps(bad.fields)[:60]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("bad", TABLE, ids=name_of)
async def test_over_http(http: httpx.AsyncClient, engine: FakeEngineClient, bad: Bad, stream: bool) -> None:
    body = {"stream": stream} | BODY | bad.fields
    if bad.param == "stream_options":
        body["stream"] = False
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == bad.status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (bad.code, bad.param)
    assert bad.says in error["message"]
    assert bad.param in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize("bad", [bad for bad in TABLE if bad.over_grpc], ids=name_of)
async def test_over_grpc_as_over_http(
    http: httpx.AsyncClient, chat_stub: "chat_pb2_grpc.ChatServiceAsyncStub", engine: FakeEngineClient, bad: Bad
) -> None:
    expected = (await http.post("/v1/chat/completions", json=BODY | bad.fields)).json()["error"]
    request = to_pb(BODY | bad.fields)
    for run in (_unary, _streaming):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run(chat_stub, request)
        status = grpc.StatusCode.NOT_FOUND if bad.status == 404 else grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.code() == status
        assert caught.value.details() == expected["message"]
        trailing = dict(caught.value.trailing_metadata() or ())
        assert (trailing["error-code"], trailing["error-field"]) == (bad.code, bad.param)
    assert engine.requests == []


async def _unary(stub: "chat_pb2_grpc.ChatServiceAsyncStub", request: chat_pb2.ChatCompletionRequest) -> None:
    await stub.CreateChatCompletion(request)


async def _streaming(stub: "chat_pb2_grpc.ChatServiceAsyncStub", request: chat_pb2.ChatCompletionRequest) -> None:
    async for _ in stub.StreamChatCompletion(request):
        pass


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
async def test_what_only_protobuf_can_say(
    chat_stub: "chat_pb2_grpc.ChatServiceAsyncStub", change: chat_pb2.ChatCompletionRequest, field: str
) -> None:
    request = to_pb(BODY)
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


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_bodies(http: httpx.AsyncClient, body: bytes) -> None:
    response = await http.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None
    assert "JSON" in error["message"]


async def test_infinite_numbers(http: httpx.AsyncClient) -> None:
    body = json.dumps(BODY)[:-1] + ', "temperature": 1e999}'
    response = await http.post("/v1/chat/completions", content=body)
    assert response.json()["error"]["param"] == "temperature"


async def test_deep_tool_schema_is_refused_by_name(http: httpx.AsyncClient) -> None:
    schema: dict[str, Any] = {}
    for _ in range(150):
        schema = {"type": "object", "properties": {"a": schema}}
    response = await http.post("/v1/chat/completions", json=BODY | {"tools": [function(parameters=schema)]})
    assert response.status_code == 400


async def test_other_streams_go_on(service: ChatService, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    running = asyncio.create_task(http.post("/v1/chat/completions", json=BODY | {"stream": True}))
    await eventually(lambda: engine.num_running == 1)
    for bad in TABLE:
        await http.post("/v1/chat/completions", json=BODY | bad.fields)
    for body in MALFORMED.values():
        await http.post("/v1/chat/completions", content=body)
    engine.gate.set()
    assert (await running).text.endswith("data: [DONE]\n\n")
    assert service.metrics.running._value.get() == 0


def test_harmless_values_parse() -> None:
    parsed = parse_chat_body(BODY | {"logprobs": False, "top_logprobs": 0, "top_k": -1, "max_tokens": 5})
    assert (parsed.request.top_logprobs, parsed.request.top_k, parsed.request.max_tokens) == (None, 0, 5)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    parsed = parse_chat_body({"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert parsed.request.messages[0].content == "ab"
