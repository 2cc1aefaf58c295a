"""What a worker costs by itself: no Serve, no gateway, no model.

A worker in this process, its engine in a process of its own, and a fake model that steps every 5 ms. CPU is user and
system time over the tokens delivered: `worker` is this process (protobuf, streams, merging, and this client's loop over
the messages), `engine` the other one (scheduler, fake runner, messages). "Added" is the time from the call to the first
message, minus the one step it needs. One row for each number of streams goes to benchmarks/results/worker.jsonl.

    PYTHONPATH=workers:protos:vocabulary python benchmarks/worker.py
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil
from results import append, environment

from chorus_protos.v1 import engine_pb2
from chorus_workers.config import WorkerConfig
from chorus_workers.runner.fake import FakeModel
from chorus_workers.worker import Worker

STEP_S = 0.005
BODY = 1000
IDLE_ROUNDS = 20
PROMPT = [BODY] * 200


@asynccontextmanager
async def started(num_streams: int) -> AsyncIterator[tuple[Worker, psutil.Process]]:
    """A worker, and its engine's process."""
    model = FakeModel(step_time_s=STEP_S, body=BODY).to_config()
    config = replace(WorkerConfig(), model=model, max_num_seqs=num_streams, max_batched_tokens=8192)
    worker: Any = Worker.__new__(Worker)
    await worker.__init__(config)
    try:
        (engine,) = psutil.Process().children()
        yield worker, engine
    finally:
        await worker.shutdown()


async def read(worker: Worker, request_id: str, num_tokens: int) -> tuple[float, int]:
    """Seconds to the first message, and the number of messages."""
    request = engine_pb2.GenerateRequest(request_id=request_id, prompt_token_ids=PROMPT, max_tokens=num_tokens)
    started_at, first_at, num_messages, num_read = time.perf_counter(), 0.0, 0, 0
    async for response in worker.generate(request):
        first_at = first_at or time.perf_counter()
        num_messages += 1
        num_read += len(response.token_ids)
    if num_read != num_tokens:
        raise RuntimeError(f"{num_read} tokens came, not {num_tokens}")
    return first_at - started_at, num_messages


async def measure(num_streams: int, num_tokens: int) -> dict[str, object]:
    async with started(num_streams) as (worker, engine):
        idle = []
        for i in range(IDLE_ROUNDS):
            await asyncio.sleep(0.05)
            idle.append((await read(worker, f"idle {i}", 1))[0])
        engine_before, own_before, started_at = engine.cpu_times(), time.process_time(), time.perf_counter()
        runs = await asyncio.gather(*(read(worker, str(i), num_tokens) for i in range(num_streams)))
        wall_s, own = time.perf_counter() - started_at, time.process_time() - own_before
        engine_after = engine.cpu_times()
    total = num_streams * num_tokens
    engine_cpu = engine_after.user + engine_after.system - engine_before.user - engine_before.system
    return {
        "streams": num_streams,
        "tokens": num_tokens,
        "step_ms": STEP_S * 1e3,
        "cpu_us_per_token": {"worker": round(own / total * 1e6, 2), "engine": round(engine_cpu / total * 1e6, 2)},
        "tokens_per_s": round(total / wall_s),
        "messages_per_token": round(sum(num_messages for _, num_messages in runs) / total, 3),
        "added_first_message_ms": round((statistics.median(idle) - STEP_S) * 1e3, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--tokens", type=int, default=600, help="tokens a stream")
    arguments = parser.parse_args()
    for num_streams in arguments.streams:
        row = asyncio.run(measure(num_streams, arguments.tokens))
        append("worker", environment() | row)
        print(row)


if __name__ == "__main__":
    main()
