"""A small server for tests of the command: `python server_process.py PORT_FILE LOG [DELAY_S]`.

It answers as a chat completion server does, writes each request's user text to LOG, and ends with its standard input.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

HANG_S = 20.0


def build_app(log: Path, delay_s: float) -> Starlette:
    """Rows whose text is "bad" are refused as invalid, as a validator would; those with "hang" take long."""

    async def chat(request: Request) -> JSONResponse:
        text = (await request.json())["messages"][0]["content"]
        with log.open("a") as file:
            file.write(text + "\n")
        await asyncio.sleep(HANG_S if text == "hang" else delay_s)
        if text == "bad":
            return JSONResponse({"error": {"message": "messages: wrong", "param": "messages"}}, 400)
        message = {"role": "assistant", "content": text[::-1]}
        return JSONResponse({"id": "chatcmpl-1", "choices": [{"index": 0, "message": message}]})

    async def plain(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": []})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", plain),
            Route("/health", plain),
        ]
    )


async def serve(port_file: Path, log: Path, delay_s: float) -> None:
    config = uvicorn.Config(
        build_app(log, delay_s),
        host="127.0.0.1",
        port=0,
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    port_file.with_suffix(".part").write_text(json.dumps(port))
    port_file.with_suffix(".part").rename(port_file)
    await asyncio.to_thread(os.read, 0, 1)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))
