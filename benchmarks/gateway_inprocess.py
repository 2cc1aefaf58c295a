"""CPU of the gateway's own code a streamed token, without sockets, Serve or workers.

Streams of a fake engine client run at once through the ASGI application (or the gRPC methods) into a client that takes
everything at once; a message holds as many tokens as a worker merges. Printed for each layer, each on top of the one
before, so that the differences tell where the time goes:

    parse     harmony's parser alone
    service   ... and the chat service: assembler, reader task, metrics
    http      ... and FastAPI's application, server-sent events
    responses service, and the Responses API: as http, its events; nothing is stored
    stored    ... and every response is kept, in SQLite
    grpc      service, and protobuf chunks serialized

Run: PYTHONPATH=cluster:protos:vocabulary python benchmarks/gateway_inprocess.py
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI
from results import append, environment
from rich.console import Console
from rich.table import Table

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.chat import GrpcChatMethods
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.harmony.conversation import Message, Role
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore
from chorus_protos.v1 import chat_pb2

MODEL = "fake"
TEXT = "The gateway reads tokens as they come, finds what they mean, and sends it on: reasoning, answers, calls. "


def script(num_tokens: int) -> list[int]:
    """A quarter of reasoning, then the answer; ends with a stop token."""
    encode = load_encoding().encode
    text = encode(TEXT * (num_tokens // 20 + 2))
    reasoning = encode("<|channel|>analysis<|message|>", allowed_special="all") + text[: num_tokens // 4]
    answer = encode("<|end|><|start|>assistant<|channel|>final<|message|>", allowed_special="all") + text
    return (reasoning + answer)[: num_tokens - 1] + encode("<|return|>", allowed_special="all")


async def run_parse(tokens: list[int], tokens_per_message: int) -> None:
    parser = StreamParser()
    for start in range(0, len(tokens), tokens_per_message):
        parser.feed(tokens[start : start + tokens_per_message])
        await asyncio.sleep(0)
    parser.finish()


async def run_service(service: ChatService) -> None:
    stream = await service.start(ChatRequest(model=MODEL, messages=(Message(Role.USER, "Hi"),)))
    async for _ in stream:
        pass
    await stream.aclose()


async def run_http(app: Callable[..., Awaitable[None]], path: str, fields: dict[str, object]) -> None:
    body = json.dumps({"model": MODEL, "stream": True, **fields}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-length", str(len(body)).encode())],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "root_path": "",
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    ended = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        if messages:
            return messages.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    await app(scope, receive, send)


class _Context:
    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def set_code(self, code: object) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None: ...


async def run_grpc(methods: GrpcChatMethods) -> None:
    user = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")
    request = chat_pb2.ChatCompletionRequest(model=MODEL, messages=[user])
    async for chunk in methods.StreamChatCompletion(request, _Context()):
        chunk.SerializeToString()


async def measure(run: Callable[[], Awaitable[None]], num_streams: int, num_tokens: int, repeats: int) -> float:
    """Median CPU microseconds a token, after a round that warms up."""
    samples = []
    for _ in range(repeats + 1):
        start = time.process_time()
        await asyncio.gather(*(run() for _ in range(num_streams)))
        samples.append(1e6 * (time.process_time() - start) / (num_streams * num_tokens))
    return statistics.median(samples[1:])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--tokens-per-message", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="add a row to benchmarks/results/")
    options = parser.parse_args()
    tokens = script(options.tokens)
    engine = FakeEngineClient(tokens, model=MODEL, tokens_per_message=options.tokens_per_message)
    service = ChatService(engine)
    methods = GrpcChatMethods(service)
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/store.sqlite3")
        await database.migrate()
        store = ResponseStore(database, ttl_s=3600.0)
        app = build_http_app(service, responses=ResponsesService(service, store))
        await compare(options, tokens, service, app, methods)
        await database.close()


async def compare(
    options: argparse.Namespace, tokens: list[int], service: ChatService, app: FastAPI, methods: GrpcChatMethods
) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    layers: dict[str, Callable[[], Awaitable[None]]] = {
        "parse": lambda: run_parse(tokens, options.tokens_per_message),
        "service": lambda: run_service(service),
        "http": lambda: run_http(app, "/v1/chat/completions", chat),
        "responses": lambda: run_http(app, "/v1/responses", {"input": "Hi", "store": False}),
        "stored": lambda: run_http(app, "/v1/responses", {"input": "Hi"}),
        "grpc": lambda: run_grpc(methods),
    }
    setting = f"{options.streams} streams, {options.tokens_per_message} tokens a message"
    table = Table("layer", "µs CPU a token", title=setting)
    measured: dict[str, object] = {}
    for name, run in layers.items():
        measured[name] = round(await measure(run, options.streams, options.tokens, options.repeats), 1)
        table.add_row(name, str(measured[name]))
    Console().print(table)
    if options.record:
        append(
            "gateway_inprocess",
            environment()
            | {"streams": options.streams, "tokens": options.tokens, "tokens_per_message": options.tokens_per_message}
            | {"cpu_us_per_token": measured},
        )


if __name__ == "__main__":
    asyncio.run(main())
