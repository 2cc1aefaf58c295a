"""Clients that send or read slowly, or have gone without a word, over real sockets."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI
from tests.support.chat import encode, eventually
from tests.support.sockets import narrow_connection
from tests.unit.gateway.conftest import GatewayMethods, grpc_server

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.stream import MAX_WAITING_EVENTS
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, completion_pb2, responses_pb2

TIMEOUT_S = 0.4
STORY = " and then they walked on" * 20_000
BODY: dict[str, Any] = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


class Storyteller(FakeEngineClient):
    """Tells a story of some 100,000 tokens, as fast as it is taken."""

    num_messages = 0

    async def _wait(self) -> None:
        self.num_messages += 1
        await super()._wait()


@pytest.fixture(scope="module")
def story() -> Sequence[int]:
    return encode(f"<|channel|>final<|message|>{STORY}<|return|>")


@pytest.fixture
def engine(story: Sequence[int]) -> Storyteller:
    return Storyteller(story, max_model_len=200_000, tokens_per_message=8)


@pytest.fixture
def app(service: ChatService) -> FastAPI:
    return build_http_app(service, max_body_bytes=1_000_000, client_timeout_s=TIMEOUT_S)


class Client:
    """A socket that takes little of what it doesn't read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, body: dict[str, Any], num_bytes: int | None = None) -> bytes:
        """The body, or its beginning; returns the rest."""
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data[:num_bytes])
        return data[num_bytes:] if num_bytes is not None else b""


@pytest.fixture
async def client(server_url: str) -> AsyncIterator[Client]:
    url = httpx.URL(server_url)
    async with narrow_connection(url.host, url.port or 80) as (reader, writer):
        yield Client(reader, writer)


def running(service: ChatService) -> float | None:
    return service.metrics.registry.get_sample_value("chorus_gateway_chats_running")


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_reads_nothing_is_given_up(
    client: Client, service: ChatService, engine: Storyteller, n: int
) -> None:
    client.send(BODY | {"n": n})
    await eventually(lambda: engine.num_running == n)
    await asyncio.sleep(TIMEOUT_S / 2)
    assert engine.num_running == n, "it is given its time"
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == n
    # What waited for it was bounded, whatever the engine could have sent.
    assert MAX_WAITING_EVENTS < engine.num_messages / n < 2 * MAX_WAITING_EVENTS
    await eventually(lambda: running(service) == 0)
    rest = await asyncio.wait_for(client.reader.read(-1), 5)
    assert not rest.endswith(b"0\r\n\r\n"), "a cut stream must not look whole"


async def test_what_it_holds_is_let_go_of_when_the_engine_has_long_finished(
    client: Client, server_url: str, service: ChatService, engine: Storyteller
) -> None:
    """Few enough events for the engine to end, too many bytes for the sockets: only the connection waits."""
    engine.tokens_per_message = 1000
    client.send(BODY)
    await eventually(lambda: len(engine.requests) == 1 and engine.num_running == 0)
    async with httpx.AsyncClient(base_url=server_url) as other:
        open_requests = service.metrics.requests.labels("/v1/chat/completions", "200")
        assert open_requests._value.get() == 0
        assert (await other.get("/health")).status_code == 200
    await eventually(lambda: open_requests._value.get() == 1)


async def test_a_client_that_reads_slowly_but_reads_gets_everything(client: Client, engine: Storyteller) -> None:
    engine.tokens_per_message = 500
    client.send(BODY)
    received, num_pauses = b"", 0
    began = time.monotonic()
    async with asyncio.timeout(20):
        # 32 KiB at a time, with pauses: slow as a whole, and never for long without reading.
        while not received.endswith(b"\r\n0\r\n\r\n"):
            if len(received) // 2**15 > num_pauses:
                num_pauses += 1
                await asyncio.sleep(TIMEOUT_S / 10)
            piece = await client.reader.read(2**14)
            assert piece, "the stream was cut"
            received += piece
    assert time.monotonic() - began > 1.2 * TIMEOUT_S
    # What lies between two pieces of a chunked body.
    events = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", received)
    pieces = [json.loads(line[6:]) for line in events.split(b"\n") if line.startswith(b'data: {"id"')]
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == STORY


async def test_a_body_that_stops_on_its_way_is_answered_408(client: Client, engine: FakeEngineClient) -> None:
    client.send(BODY, 20)
    answer = await asyncio.wait_for(client.reader.read(-1), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert b'"code":"client_too_slow"' in answer
    assert engine.requests == []


async def test_so_is_one_that_trickles(client: Client, engine: FakeEngineClient) -> None:
    rest = client.send(BODY | {"user": "x" * 1000}, 20)
    answer = asyncio.create_task(client.reader.readline())
    for byte in rest:
        await asyncio.sleep(TIMEOUT_S / 100)
        if answer.done():
            break
        client.writer.write(bytes([byte]))
    assert (await answer).startswith(b"HTTP/1.1 408 ")
    assert engine.requests == []


async def test_an_answer_may_take_its_time(client: Client, engine: FakeEngineClient) -> None:
    """Waiting for an engine is not being slow."""
    engine.script = encode("<|channel|>final<|message|>Hello<|return|>")
    engine.gate = asyncio.Event()
    client.send(BODY)
    await eventually(lambda: engine.num_running == 1)
    await asyncio.sleep(2.5 * TIMEOUT_S)
    engine.gate.set()
    assert b"[DONE]" in await asyncio.wait_for(client.reader.readuntil(b"[DONE]"), 5)


CHAT = chat_pb2.ChatCompletionRequest(
    model="fake-model",
    messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")],
    # Log probabilities fill the buffers of a connection soon.
    top_logprobs=20,
)
TEXT = completion_pb2.CompletionRequest(
    model="fake-model", prompts=[completion_pb2.Prompt(text="Hi")], max_tokens=100_000, logprobs=20
)


RESPONSE = responses_pb2.CreateResponseRequest(
    model="fake-model",
    input=[
        responses_pb2.ResponseItem(
            message=responses_pb2.MessageItem(
                role=chat_pb2.ROLE_USER, content=[responses_pb2.ContentPart(input_text="Hi")]
            )
        )
    ],
    top_logprobs=20,
)
METHODS = {
    "chat": ("/chorus.v1.ChatService/StreamChatCompletion", CHAT, chat_pb2.ChatCompletionChunk),
    "completion": ("/chorus.v1.CompletionService/StreamCompletion", TEXT, completion_pb2.CompletionChunk),
    "response": ("/chorus.v1.ResponsesService/StreamResponse", RESPONSE, responses_pb2.ResponseEvent),
}


@pytest.mark.parametrize("kind", METHODS)
async def test_a_grpc_client_that_reads_nothing_frees_its_engine(
    service: ChatService, engine: Storyteller, kind: str
) -> None:
    method, request_pb, answer = METHODS[kind]
    # Without probing, a client takes no more than HTTP/2's first window of what it doesn't read.
    options = [("grpc.http2.bdp_probe", 0)]
    methods = GatewayMethods(service, client_timeout_s=TIMEOUT_S)
    async with grpc_server(methods) as address, grpc.aio.insecure_channel(address, options) as channel:
        call = channel.unary_stream(method, request_pb.SerializeToString, answer.FromString)(request_pb)
        await eventually(lambda: engine.num_running == 1)
        await eventually(lambda: engine.num_running == 0)
        assert engine.num_aborted == 1
        assert running(service) == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(caught.value.trailing_metadata() or ())["error-code"] == "client_too_slow"
