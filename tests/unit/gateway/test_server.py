"""The application behind a real HTTP server: OpenAI's client, sockets that close, bodies beyond bounds."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from tests.support.chat import TOOL_CALL, encode, eventually

from chorus_cluster.errors import Overloaded
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.routing.fake_client import FakeEngineClient

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


@pytest.fixture
async def client(server_url: str) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_openai_client_whole(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="fake-model", messages=MESSAGES, logprobs=True)
    choice = completion.choices[0]
    assert choice.message.content == "Hello there, friend."
    assert choice.message.reasoning == "The user greets."  # type: ignore[attr-defined]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == "Hello there, friend."
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


async def test_openai_client_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    content, reasoning, usage = "", "", None
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning", None) or ""
    assert (content, reasoning) == ("Hello there, friend.", "The user greets.")
    assert usage is not None and usage.completion_tokens > 0


async def test_openai_client_tool_loop(client: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    answer, engine.script = engine.script, encode(TOOL_CALL)
    async with client.chat.completions.stream(model="fake-model", messages=MESSAGES, tools=TOOLS) as stream:
        async for _ in stream:
            pass
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'
    engine.script = answer
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "22 C"}
    completion = await client.chat.completions.create(
        model="fake-model", messages=[*MESSAGES, message, result], tools=TOOLS
    )
    assert completion.choices[0].message.content == "Hello there, friend."


async def test_openai_client_errors(client: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="fake-model", messages=MESSAGES, temperature=3)
    assert bad.value.param == "temperature"
    engine.refusal = Overloaded(3)
    with pytest.raises(openai.RateLimitError) as busy:
        await client.chat.completions.create(model="fake-model", messages=MESSAGES)
    assert busy.value.response.headers["retry-after"] == "3"
    assert busy.value.request_id


async def test_openai_client_models(client: openai.AsyncOpenAI) -> None:
    (model,) = [model async for model in client.models.list()]
    assert model.id == "fake-model"
    assert model.max_model_len == 4096  # type: ignore[attr-defined]
    assert (await client.models.retrieve("fake-model")).id == "fake-model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("a/b")


@pytest.mark.parametrize("is_reused", [False, True])
@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_ends_its_request(
    server_url: str, service: ChatService, engine: FakeEngineClient, stream: bool, is_reused: bool
) -> None:
    reader, writer = await asyncio.open_connection(*_address(server_url))
    if is_reused:
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b'{"status":"ok"}')
    engine.gate = asyncio.Event()
    body = json.dumps({"model": "fake-model", "messages": MESSAGES, "stream": stream}).encode()
    writer.write(_head(len(body)) + body)
    await writer.drain()
    await eventually(lambda: engine.num_running == 1)
    if stream:
        await reader.readuntil(b'"role":"assistant"')
    writer.close()
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 1
    await eventually(lambda: service.metrics.registry.get_sample_value("chorus_gateway_chats_running") == 0)


async def test_accounts_agree_under_churn(server_url: str, service: ChatService, engine: FakeEngineClient) -> None:
    """Clients that stay, that leave at any moment, and that send nonsense: in the end nothing runs, all is counted."""
    engine.interval_s = 0.02

    async def one(client: httpx.AsyncClient, i: int) -> None:
        body = {"model": "fake-model", "messages": MESSAGES, "stream": i % 2 == 0}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02 * (i % 40) if i % 3 else None):
                await client.post("/v1/chat/completions", json=body | ({"n": 2} if i % 7 == 0 else {}))

    async with httpx.AsyncClient(base_url=server_url, timeout=None) as client:
        await asyncio.gather(*(one(client, i) for i in range(90)))
    metrics = service.metrics.registry
    await eventually(lambda: metrics.get_sample_value("chorus_gateway_chats_running") == 0)
    assert engine.num_running == 0
    (outcomes,) = service.metrics.outcomes.collect()
    totals = {s.labels["outcome"]: s.value for s in outcomes.samples if s.name.endswith("_total")}
    assert set(totals) == {"stop", "client_left"}
    assert totals["stop"] + engine.num_aborted == len(engine.requests)
    assert sum(totals.values()) >= len(engine.requests)


async def test_client_that_reads_slowly_gets_everything(server_url: str, engine: FakeEngineClient) -> None:
    text = "a long story " * 5_000
    engine.max_model_len = 200_000
    engine.tokens_per_message = 2
    engine.script = tokens = encode(f"<|channel|>final<|message|>{text}<|return|>")
    # Small buffers between the two, so that the server feels it soon.
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, _address(server_url))
    reader, writer = await asyncio.open_connection(sock=client, limit=2**10)
    body = json.dumps({"model": "fake-model", "messages": MESSAGES, "stream": True}).encode()
    writer.write(_head(len(body)) + body)
    await eventually(lambda: engine.num_running == 1)
    await asyncio.sleep(0.5)
    answer = await asyncio.wait_for(reader.read(-1), 20)
    writer.close()
    pieces = [json.loads(line[6:]) for line in answer.split(b"\n") if line.startswith(b'data: {"id"')]
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == text
    assert len(pieces) < len(tokens) / 2, "messages should have been merged"


async def test_large_body_is_refused_before_it_is_sent(server_url: str) -> None:
    reader, writer = await asyncio.open_connection(*_address(server_url))
    writer.write(_head(100 * 2**20))
    await writer.drain()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head
    assert b'"payload_too_large"' in await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    writer.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("tells_length", [True, False])
async def test_client_that_sends_it_all_sees_the_answer(server_url: str, tells_length: bool, path: str) -> None:
    """100 MiB of it."""
    num_pieces = 1600

    async def body() -> AsyncIterator[bytes]:
        for _ in range(num_pieces):
            yield bytes(2**16)

    headers = {"content-length": str(num_pieces * 2**16)} if tells_length else {}
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{server_url}{path}", content=body(), headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "payload_too_large"
        assert (await client.get(f"{server_url}/health")).status_code == 200


async def test_client_that_asks_first_sends_nothing(server_url: str) -> None:
    reader, writer = await asyncio.open_connection(*_address(server_url))
    writer.write(_head(100 * 2**20)[:-2] + b"expect: 100-continue\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(-1), 5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    writer.close()


def _address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    return parsed.host, parsed.port or 80


def _head(length: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    ).encode()
