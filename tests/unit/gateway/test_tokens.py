"""/tokenize and /detokenize, and their gRPC methods."""

import json
from typing import Any

import grpc
import httpx
import jsonschema
import pytest

from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2

Stub = "chat_pb2_grpc.ChatServiceAsyncStub"
CHAT: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|end|>"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "reasoning_effort": "high",
}
CHAT_PB = chat_pb2.ChatCompletionRequest(
    messages=[
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, content="Be brief."),
        chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi <|end|>"),
    ],
    tools=[chat_pb2.FunctionTool(name="f")],
    reasoning_effort=chat_pb2.REASONING_EFFORT_HIGH,
)


async def test_a_prompt_and_back(http: httpx.AsyncClient, chat_stub: Stub) -> None:
    prompt = "<|start|>user<|message|>Hi, 世界<|end|>"
    answer = (await http.post("/tokenize", json={"prompt": prompt})).json()
    assert answer["tokens"] == load_encoding().encode(prompt, allowed_special="all")
    assert (answer["count"], answer["max_model_len"], answer["token_strs"]) == (len(answer["tokens"]), 4096, None)
    over_grpc = await chat_stub.Tokenize(chat_pb2.TokenizeRequest(prompt=prompt))
    assert ([*over_grpc.token_ids], over_grpc.max_model_len) == (answer["tokens"], 4096)
    assert not over_grpc.token_strs
    spelled = await chat_stub.Tokenize(chat_pb2.TokenizeRequest(prompt=prompt, return_token_strs=True))
    assert "".join(spelled.token_strs) == prompt and len(spelled.token_strs) == len(spelled.token_ids)
    back = await http.post("/detokenize", json={"model": "fake-model", "tokens": answer["tokens"]})
    assert back.json() == {"prompt": prompt}
    assert (await chat_stub.Detokenize(chat_pb2.DetokenizeRequest(token_ids=answer["tokens"]))).text == prompt


async def test_tokens_are_spelled_on_demand(http: httpx.AsyncClient) -> None:
    body = {"model": "fake-model", "prompt": "Hi<|end|>", "return_token_strs": True, "add_special_tokens": False}
    assert (await http.post("/tokenize", json=body)).json()["token_strs"] == ["Hi", "<|end|>"]


async def test_a_conversation_is_what_the_engine_gets(
    http: httpx.AsyncClient, chat_stub: Stub, engine: FakeEngineClient
) -> None:
    await http.post("/v1/chat/completions", json=CHAT | {"model": "fake-model"})
    sent = [*engine.requests[0].prompt_token_ids]
    for extra in ({}, {"model": "fake-model", "temperature": 0.5, "add_generation_prompt": True, "stream": None}):
        answer = await http.post("/tokenize", json=CHAT | extra)
        assert answer.json()["tokens"] == sent
    assert [*(await chat_stub.Tokenize(chat_pb2.TokenizeRequest(chat=CHAT_PB))).token_ids] == sent
    assert len(engine.requests) == 1


async def test_openapi_has_both_bodies(http: httpx.AsyncClient) -> None:
    schema = (await http.get("/openapi.json")).json()
    bodies = schema["paths"]["/tokenize"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    chat = schema["components"]["schemas"][bodies[1]["$ref"].rpartition("/")[2]]
    definitions = {"$defs": schema["components"]["schemas"]}
    for body, refused in ((CHAT | {"return_token_strs": True}, 0), ({"prompt": "a", "return_token_strs": True}, 1)):
        for index, one in enumerate((chat, bodies[0])):
            text = json.dumps(one | definitions).replace("#/components/schemas/", "#/$defs/")
            assert jsonschema.Draft202012Validator(json.loads(text)).is_valid(body) == (index == refused)


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/tokenize", {}, "prompt", "is required"),
        ("/tokenize", [], None, "must be a JSON object"),
        ("/tokenize", {"prompt": 5}, "prompt", "must be a string"),
        ("/tokenize", {"prompt": "a", "promt": "b"}, "promt", "did you mean 'prompt'"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs", "true or false"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "not a known field"),
        ("/tokenize", {"prompt": " " * 100_000}, "prompt", "100000 characters"),
        ("/tokenize", {"prompt": "a", **CHAT}, "prompt", "beside 'messages'"),
        ("/tokenize", {**CHAT, "add_generation_prompt": False}, "add_generation_prompt", "must be true"),
        ("/tokenize", {**CHAT, "return_token_strs": "yes"}, "return_token_strs", "true or false"),
        ("/tokenize", {"messages": []}, "messages", "at least one"),
        ("/tokenize", {**CHAT, "reasonning_effort": "low"}, "reasonning_effort", "did you mean 'reasoning_effort'"),
        ("/detokenize", {}, "tokens", "is required"),
        ("/detokenize", {"tokens": [1, "2"]}, "tokens[1]", "must be an integer"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]", "from 0 to 201087"),
        ("/detokenize", {"tokens": [201_088]}, "tokens[0]", "from 0 to 201087"),
        ("/detokenize", {"tokens": [2**70]}, "tokens[0]", "from 0 to 201087"),
        ("/detokenize", {"tokens": [1] * 4097}, "tokens", "4097"),
    ],
)
async def test_bad_bodies(http: httpx.AsyncClient, path: str, body: Any, param: str | None, says: str) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "field"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})])
async def test_another_model_and_a_large_body(http: httpx.AsyncClient, path: str, field: dict[str, Any]) -> None:
    response = await http.post(path, json=field | {"model": "gpt-9"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert (await http.post(path, content=b" " * 1_000_001)).status_code == 413


async def test_bad_calls(chat_stub: Stub) -> None:
    for call, status, says in (
        (chat_stub.Tokenize(chat_pb2.TokenizeRequest()), grpc.StatusCode.INVALID_ARGUMENT, "prompt: is required"),
        (
            chat_stub.Tokenize(chat_pb2.TokenizeRequest(prompt="a", model="x")),
            grpc.StatusCode.NOT_FOUND,
            "does not exist",
        ),
        (
            chat_stub.Tokenize(chat_pb2.TokenizeRequest(prompt="a" * 1_000_000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "larger than",
        ),
        (
            chat_stub.Detokenize(chat_pb2.DetokenizeRequest(token_ids=[5, 201_088])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "tokens[1]",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() == status
        assert says in str(error.value.details())
