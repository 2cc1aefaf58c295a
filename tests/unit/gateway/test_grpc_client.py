"""The clients for threads and for asyncio, on the gateway's own gRPC methods."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from tests.support.chat import encode, eventually
from tests.unit.gateway.conftest import GatewayMethods, grpc_server

from chorus_cluster import errors
from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import new_key
from chorus_cluster.client import AsyncChorusClient, ChorusClient, Settings
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, completion_pb2

USER = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")
REQUEST = chat_pb2.ChatCompletionRequest(model="fake-model", messages=[USER])
PROMPT = completion_pb2.CompletionRequest(model="fake-model", prompts=[completion_pb2.Prompt(text="Hi")], max_tokens=50)


class InThread:
    """A `ChorusClient` with the methods of an `AsyncChorusClient`."""

    def __init__(self, target: str, settings: Settings | None = None) -> None:
        self._client = ChorusClient(target, settings)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not name.startswith("stream_"):
            return lambda *args, **kwargs: asyncio.to_thread(method, *args, **kwargs)

        async def read(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            chunks = method(*args, **kwargs)
            try:
                while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                    yield chunk
            finally:
                await asyncio.to_thread(chunks.close)

        return read

    async def __aenter__(self) -> "InThread":
        self._client.__enter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._client.__exit__, *error)


@pytest.fixture(params=[InThread, AsyncChorusClient])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def address(service: ChatService) -> AsyncIterator[str]:
    async with grpc_server(GatewayMethods(service, max_request_bytes=1_000_000)) as address:
        yield address


@pytest.fixture
async def client(kind: Any, address: str) -> AsyncIterator[Any]:
    async with kind(address, Settings(max_attempts=1)) as client:
        yield client


async def test_a_chat_whole_and_in_pieces(client: Any) -> None:
    whole = await client.chat(REQUEST)
    assert (whole.message.reasoning, whole.message.content) == ("The user greets.", "Hello there, friend.")
    deltas = [delta async for chunk in client.stream_chat(REQUEST) for delta in chunk.deltas]
    assert "".join(delta.content for delta in deltas) == whole.message.content
    assert deltas[-1].usage == whole.usage


async def test_a_raw_prompt_whole_and_in_pieces(client: Any, engine: FakeEngineClient) -> None:
    engine.script = encode(" there<|return|>")
    whole = await client.complete(PROMPT)
    assert whole.choices[0].text == " there"
    deltas = [delta async for chunk in client.stream_complete(PROMPT) for delta in chunk.deltas]
    assert "".join(delta.text for delta in deltas) == " there"


async def test_tokens_models_and_health(client: Any, engine: FakeEngineClient) -> None:
    assert await client.tokenize("Hi<|end|>") == encode("Hi<|end|>")
    await client.chat(REQUEST)
    assert await client.tokenize(REQUEST) == list(engine.requests[0].prompt_token_ids)
    assert await client.detokenize(encode("Hi<|end|>")) == "Hi<|end|>"
    assert [model.id for model in await client.models()] == ["fake-model"]
    assert await client.is_healthy()
    engine.refusal = errors.Unavailable()
    assert not await client.is_healthy()


async def test_an_error_is_the_server_s(client: Any, engine: FakeEngineClient) -> None:
    wrong = chat_pb2.ChatCompletionRequest(model="fake-model", messages=[USER], temperature=3)
    with pytest.raises(errors.InvalidRequest, match="temperature: must be from 0 to 2") as caught:
        await client.chat(wrong, request_id="mine")
    assert (caught.value.field, caught.value.request_id) == ("temperature", "mine")
    with pytest.raises(errors.ModelNotFound):
        await client.tokenize(chat_pb2.ChatCompletionRequest(model="other", messages=[USER]))
    with pytest.raises(errors.PayloadTooLarge):
        await client.tokenize("a" * 1_000_000)
    engine.refusal = errors.Overloaded(1.5)
    with pytest.raises(errors.Overloaded) as refused:
        await anext(aiter(client.stream_chat(REQUEST)))
    assert refused.value.retry_after_s == 1.5
    assert isinstance(refused.value.__cause__, grpc.RpcError)


async def test_an_error_in_the_middle_comes_after_what_was_there(client: Any, engine: FakeEngineClient) -> None:
    engine.failure = (8, errors.RequestFailed())
    texts = []
    with pytest.raises(errors.RequestFailed):
        async for chunk in client.stream_chat(REQUEST):
            texts += [delta.reasoning for delta in chunk.deltas]
    assert "".join(texts) == "The user greets."


async def test_closing_a_stream_ends_its_request(client: Any, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    chunks = client.stream_chat(REQUEST)
    await anext(chunks)
    assert engine.num_running == 1
    await chunks.aclose()
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 1


async def test_a_time_limit_reaches_the_engine(client: Any, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    with pytest.raises(errors.DeadlineExceeded):
        await client.chat(REQUEST, timeout_s=0.3)
    assert engine.requests[0].HasField("deadline_unix_s")
    await eventually(lambda: engine.num_running == 0)


async def test_the_limit_of_the_settings_is_the_default(kind: Any, address: str, engine: FakeEngineClient) -> None:
    async with kind(address, Settings(timeout_s=30)) as client:
        await client.chat(REQUEST)
    async with kind(address) as client:
        await client.chat(REQUEST)
    assert [request.HasField("deadline_unix_s") for request in engine.requests] == [True, False]


async def text_of(chunks: AsyncIterator[chat_pb2.ChatCompletionChunk]) -> str:
    return "".join([delta.content async for chunk in chunks for delta in chunk.deltas])


async def test_a_stream_that_no_worker_takes_is_tried_again(kind: Any, address: str, engine: FakeEngineClient) -> None:
    """And not what is refused for another reason, or told not to."""
    async with kind(address) as client:
        # So that the gateway knows the model, and the request alone is refused.
        await client.models()
        engine.refusal = errors.Unavailable()
        answer = asyncio.ensure_future(text_of(client.stream_chat(REQUEST)))
        await eventually(lambda: len(engine.requests) == 1)
        engine.refusal = None
        assert await answer == "Hello there, friend."
        assert len(engine.requests) == 2
        engine.refusal = errors.Overloaded(1)
        with pytest.raises(errors.Overloaded):
            await text_of(client.stream_chat(REQUEST))
        assert len(engine.requests) == 3
    async with kind(address, Settings(max_attempts=1)) as client:
        engine.refusal = errors.Unavailable()
        with pytest.raises(errors.Unavailable):
            await text_of(client.stream_chat(REQUEST))
        assert len(engine.requests) == 4


async def test_keys(kind: Any, service: ChatService, tmp_path: Path) -> None:
    key, entry = new_key("laptop")
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n{entry}")
    async with grpc_server(GatewayMethods(service, access=Access(KeyFile(path)))) as address:
        async with kind(address, Settings(api_key=key)) as client:
            assert (await client.chat(REQUEST)).message.content
        async with kind(address, Settings(api_key="wrong")) as client:
            with pytest.raises(errors.Unauthenticated):
                await client.chat(REQUEST)
        async with kind(address) as client:
            assert await client.is_healthy()
            with pytest.raises(errors.Unauthenticated):
                await client.models()


async def test_tls(kind: Any, service: ChatService) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    server_side = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with grpc_server(GatewayMethods(service), server_side) as address:
        async with kind(address, Settings(credentials=credentials)) as client:
            assert (await client.chat(REQUEST)).message.content
        for other in (None, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())):
            async with kind(address, Settings(credentials=other, max_attempts=1)) as client:
                with pytest.raises(errors.Unavailable):
                    await client.chat(REQUEST)


async def test_a_server_that_is_not_there_is_unavailable(kind: Any) -> None:
    # Nobody listens on port 1.
    async with kind("127.0.0.1:1", Settings(max_attempts=1)) as client:
        with pytest.raises(errors.Unavailable):
            await client.chat(REQUEST)


def test_attempts_are_bounded() -> None:
    for attempts in (0, 6):
        with pytest.raises(ValueError, match="max_attempts"):
            Settings(max_attempts=attempts)


def test_importing_the_client_brings_no_server() -> None:
    program = "import sys, chorus_cluster.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout.split()
    assert {"chorus_cluster", "chorus_protos", "grpc"} <= set(loaded)
    assert not {"ray", "torch", "fastapi", "starlette", "pydantic", "numpy"} & set(loaded)
