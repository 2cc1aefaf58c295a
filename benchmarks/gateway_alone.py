"""The gateway without Serve: CPU per token of parsing, rendering, FastAPI and uvicorn, in one process.

The rest of what `gateway.py` measures is Serve's. Tokens come from a paced source in the gateway's own process, three
to a message every 15 ms, as a worker with `merge_interval_s: 0.015` sends them.
"""

import argparse
import asyncio
import json
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.harmony.encoding import load_encoding
from chorus_protos.v1 import engine_pb2

MODEL = "chorus-fake"
MARKER = "token"
MERGE_S = 0.015
TOKENS_A_MESSAGE = 3


class PacedEngine:
    """An EngineClient that costs next to nothing: the same message again and again."""

    def __init__(self) -> None:
        encoding = load_encoding()
        (word,) = encoding.encode(f" {MARKER}")
        header = encoding.encode("<|channel|>final<|message|>", allowed_special="all")
        self._first = engine_pb2.GenerateResponse(token_ids=header)
        self._next = engine_pb2.GenerateResponse(token_ids=[word] * TOKENS_A_MESSAGE)

    async def model_info(self) -> engine_pb2.ModelInfo:
        return engine_pb2.ModelInfo(model=MODEL, vocab_size=201088, max_model_len=131072, num_shards=1)

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateResponse]:
        yield self._first
        num_messages = (request.max_tokens - len(self._first.token_ids)) // TOKENS_A_MESSAGE
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        for _ in range(num_messages):
            due_at += MERGE_S
            await asyncio.sleep(due_at - loop.time())
            yield self._next
        yield engine_pb2.GenerateResponse(finish_reason=engine_pb2.FINISH_REASON_LENGTH)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def run(streams: int, tokens: int, repeats: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    app = build_http_app(ChatService(PacedEngine()))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, str(Path(__file__).with_name("load_client.py")), "--protocol", "http"]
    command += ["--address", address, "--model", MODEL, "--streams", str(streams), "--tokens", str(tokens)]
    for _ in range(repeats):
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        await asyncio.sleep(1.0)
        before = cpu_s()
        output, _ = await client.communicate()
        load = json.loads(output)
        us_a_token = 1e6 * (cpu_s() - before) / load["num_tokens"]
        rate = load["num_tokens"] / load["wall_s"]
        print(f"{us_a_token:.1f} us a token, {us_a_token * TOKENS_A_MESSAGE:.1f} a message, {rate:.0f} tokens/s")
    server.should_exit = True
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=513, help="tokens of each stream; a multiple of three")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.streams, arguments.tokens, arguments.repeats))


if __name__ == "__main__":
    main()
