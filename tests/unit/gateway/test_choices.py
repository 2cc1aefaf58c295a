"""Several answers to one request (`n`), over HTTP and gRPC."""

import asyncio
import json
from typing import Any

import grpc
import httpx
import openai
import pytest
from tests.support.chat import ANSWER, TOOL_CALL, encode, eventually

from chorus_cluster.errors import Overloaded, RequestFailed
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, engine_pb2

Stub = "chat_pb2_grpc.ChatServiceAsyncStub"
BODY: dict[str, Any] = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}], "n": 3, "seed": 5}
REQUEST = chat_pb2.ChatCompletionRequest(
    model="fake-model", messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")], n=3, seed=5
)
TEXTS = ("One.", "Two, two.", "")


def script(request: engine_pb2.GenerateRequest) -> list[int]:
    """Another answer for each seed: two texts, and a tool call."""
    number = request.sampling.seed - 5
    if number == 2:
        return encode(TOOL_CALL)
    return encode(
        f"<|channel|>analysis<|message|>Hm {number}.<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{TEXTS[number]}<|return|>"
    )


class Engine(FakeEngineClient):
    """One whose methods tests can replace."""


@pytest.fixture
def engine() -> FakeEngineClient:
    return Engine(script)


def num_running(service: ChatService) -> float:
    return service.metrics.registry.get_sample_value("chorus_gateway_chats_running") or 0.0


def chunks_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]" and lines.count("[DONE]") == 1
    return [json.loads(line) for line in lines[:-1]]


async def test_a_whole_answer(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    answer = (await http.post("/v1/chat/completions", json=BODY)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["One.", "Two, two.", None]
    assert [choice["message"].get("reasoning") for choice in answer["choices"]][:2] == ["Hm 0.", "Hm 1."]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop", "tool_calls"]
    lengths = [len(script(request)) for request in engine.requests]
    num_prompt = len(engine.requests[0].prompt_token_ids)
    assert answer["usage"]["prompt_tokens"] == num_prompt
    assert answer["usage"]["completion_tokens"] == sum(lengths)
    assert answer["usage"]["total_tokens"] == num_prompt + sum(lengths)
    assert [request.sampling.seed for request in engine.requests] == [5, 6, 7]
    assert len({request.request_id for request in engine.requests}) == 3
    assert all(request.request_id.startswith(answer["id"]) for request in engine.requests)


async def test_the_first_is_what_a_request_for_one_gets(http: httpx.AsyncClient) -> None:
    several = (await http.post("/v1/chat/completions", json=BODY)).json()["choices"]
    for n in (1, None):
        (one,) = (await http.post("/v1/chat/completions", json=BODY | {"n": n})).json()["choices"]
        assert one == several[0]


async def test_without_a_seed_each_has_its_own(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(ANSWER)
    await http.post("/v1/chat/completions", json=BODY | {"seed": None})
    await http.post("/v1/chat/completions", json=BODY | {"seed": -1})
    seeds = [request.sampling.seed for request in engine.requests]
    assert len({*seeds[:3]}) == 3
    assert seeds[3:] == [2**64 - 1, 0, 1]


@pytest.mark.parametrize("with_usage", [False, True])
async def test_a_stream(http: httpx.AsyncClient, with_usage: bool) -> None:
    body = BODY | {"stream": True} | ({"stream_options": {"include_usage": True}} if with_usage else {})
    chunks = chunks_of((await http.post("/v1/chat/completions", json=body)).text)
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usages) == with_usage
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    contents = ["", "", ""]
    for choice in choices:
        contents[choice["index"]] += choice["delta"].get("content") or ""
    assert contents == list(TEXTS)
    for index, reason in enumerate(("stop", "stop", "tool_calls")):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == [reason]
        assert own[-1]["finish_reason"] == reason
    assert len({chunk["id"] for chunk in chunks}) == 1
    if with_usage:
        whole = (await http.post("/v1/chat/completions", json=BODY)).json()
        assert usages == [whole["usage"]]
        assert chunks[-1]["choices"] == []


async def test_openai_s_client(http: httpx.AsyncClient) -> None:
    client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", http_client=http, max_retries=0)
    answer = await client.chat.completions.create(**BODY)
    assert [choice.message.content for choice in answer.choices][:2] == ["One.", "Two, two."]
    texts = ["", "", ""]
    async with client.chat.completions.stream(**BODY) as stream:
        async for event in stream:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
        final = await stream.get_final_completion()
    assert texts == list(TEXTS)
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop", "tool_calls"]


async def test_over_grpc(chat_stub: Stub, http: httpx.AsyncClient) -> None:
    response = await chat_stub.CreateChatCompletion(REQUEST)
    assert [choice.message.content for choice in response.choices] == list(TEXTS)
    assert response.choices[2].finish_reason == chat_pb2.CHAT_FINISH_REASON_TOOL_CALLS
    assert response.message == response.choices[0].message
    whole = (await http.post("/v1/chat/completions", json=BODY)).json()["usage"]
    assert (response.usage.prompt_tokens, response.usage.total_tokens) == (
        whole["prompt_tokens"],
        whole["total_tokens"],
    )
    deltas = [delta async for chunk in chat_stub.StreamChatCompletion(REQUEST) for delta in chunk.deltas]
    contents = ["", "", ""]
    for delta in deltas:
        contents[delta.choice] += delta.content
    assert contents == list(TEXTS)
    assert sorted(delta.choice for delta in deltas if delta.WhichOneof("delta") == "finish_reason") == [0, 1, 2]
    assert [i for i, delta in enumerate(deltas) if delta.WhichOneof("delta") == "usage"] == [len(deltas) - 1]
    assert deltas[-1].usage == response.usage
    (one,) = [
        await chat_stub.CreateChatCompletion(
            chat_pb2.ChatCompletionRequest(model="fake-model", seed=5, messages=REQUEST.messages)
        )
    ]
    assert not one.choices and one.message == response.message


async def test_the_prompt_goes_ahead_once(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    """The others are sent when the first has been admitted, for the prefix cache."""
    started = asyncio.Event()
    generate = engine.generate

    async def slow(request: engine_pb2.GenerateRequest) -> Any:
        if len(engine.requests) == 0:
            stream = generate(request)
            first = await anext(stream)
            await started.wait()
            yield first
            async for response in stream:
                yield response
        else:
            async for response in generate(request):
                yield response

    engine.generate = slow  # type: ignore[method-assign]
    running = asyncio.create_task(http.post("/v1/chat/completions", json=BODY))
    await eventually(lambda: len(engine.requests) == 1)
    await asyncio.sleep(0.02)
    assert len(engine.requests) == 1
    started.set()
    assert (await running).status_code == 200
    assert len(engine.requests) == 3


@pytest.mark.parametrize("refused", [0, 1, 2])
@pytest.mark.parametrize("stream", [False, True])
async def test_all_or_none_are_admitted(
    http: httpx.AsyncClient, service: ChatService, engine: FakeEngineClient, refused: int, stream: bool
) -> None:
    generate = engine.generate

    async def refusing(request: engine_pb2.GenerateRequest) -> Any:
        if request.sampling.seed == 5 + refused:
            raise Overloaded(2.0)
        async for response in generate(request):
            yield response

    engine.generate = refusing  # type: ignore[method-assign]
    engine.gate = asyncio.Event()
    response = await http.post("/v1/chat/completions", json=BODY | {"stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert engine.num_running == 0
    assert num_running(service) == 0


async def test_one_failure_ends_all(
    http: httpx.AsyncClient, chat_stub: Stub, service: ChatService, engine: FakeEngineClient
) -> None:
    engine.failure = (4, RequestFailed())
    response = await http.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "request_failed")
    lines = (await http.post("/v1/chat/completions", json=BODY | {"stream": True})).text.split("\n\n")
    assert [json.loads(line[6:])["error"]["code"] for line in lines if "error" in line] == ["request_failed"]
    assert lines[-2] == "data: [DONE]"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        _ = [chunk async for chunk in chat_stub.StreamChatCompletion(REQUEST)]
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert engine.num_running == 0
    assert num_running(service) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_all(
    server_url: str, service: ChatService, engine: FakeEngineClient, stream: bool
) -> None:
    engine.gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=server_url) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=BODY | {"stream": stream}))
        await eventually(lambda: engine.num_running == 3)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 3
    assert num_running(service) == 0


async def test_many(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(ANSWER)
    body = BODY | {"n": 128, "stream": True}
    chunks = chunks_of((await http.post("/v1/chat/completions", json=body)).text)
    contents = dict.fromkeys(range(128), "")
    for chunk in chunks:
        for choice in chunk["choices"]:
            contents[choice["index"]] += choice["delta"].get("content") or ""
    assert set(contents.values()) == {"Hello there, friend."}
