"""Under churn, every account of a worker agrees, and everything is free at the end."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from tests.unit.worker.conftest import fake_config, start_worker

from chorus_protos.v1 import engine_pb2, engine_pb2_grpc
from chorus_workers.runner.fake import FakeModel
from chorus_workers.worker import Worker

NUM_REQUESTS = 300


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """Room for 8 requests, memory for about 4, and 12 places to wait."""
    config = fake_config(
        FakeModel(step_time_s=0.002, vocab_size=1000),
        max_num_seqs=8,
        max_batched_tokens=32,
        max_queued_requests=12,
        num_kv_blocks=24,
        block_size=8,
        max_model_len=192,
        merge_interval_s=0.005,
        grpc_port=0,
    )
    worker = await start_worker(config)
    yield worker
    await worker.shutdown()


def draw_request(request_id: str, dice: random.Random) -> engine_pb2.GenerateRequest:
    request = engine_pb2.GenerateRequest(
        request_id=request_id,
        prompt_token_ids=[dice.randrange(1000) for _ in range(dice.choice([1, 5, 30, 60, 192]))],
        max_tokens=dice.choice([1, 40, 100, 130]),
    )
    if dice.random() < 0.2:
        request.deadline_unix_s = time.time() + dice.choice([-1.0, 0.01, 0.1])
    return request


async def consume(
    worker: Worker, stub: engine_pb2_grpc.EngineServiceStub, request: engine_pb2.GenerateRequest, dice: random.Random
) -> str:
    """Reads an answer in one of many ways; returns how it ended."""
    over_grpc, leave_after, abort_after = dice.random() < 0.5, dice.choice([None, None, 0, 1, 3]), dice.random() < 0.1
    responses = stub.Generate(request) if over_grpc else worker.generate(request)
    num_read = 0
    try:
        async for response in responses:
            if response.HasField("refusal"):
                return engine_pb2.RefusalReason.Name(response.refusal.reason).removeprefix("REFUSAL_REASON_").lower()
            if response.finish_reason:
                return engine_pb2.FinishReason.Name(response.finish_reason).removeprefix("FINISH_REASON_").lower()
            if num_read == leave_after:
                return "left"
            num_read += 1
            if abort_after:
                await worker.abort(engine_pb2.AbortRequest(request_id=request.request_id))
    except grpc.aio.AioRpcError as error:
        return error.code().name.lower()
    finally:
        if over_grpc:
            responses.cancel()
        else:
            await responses.aclose()
    raise AssertionError("a stream ended without saying how")


async def test_all_accounts_agree_under_churn(worker: Worker) -> None:
    dice = random.Random(9)
    endings: Counter[str] = Counter()
    assert worker.grpc_address is not None
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)

        async def one(number: int) -> None:
            """Asks at some time, and again while the worker is full."""
            await asyncio.sleep(dice.choice([0, 0.3, dice.random() * 2, dice.random() * 2]))
            for attempt in range(1000):
                ending = await consume(worker, stub, draw_request(f"{number}.{attempt}", dice), dice)
                endings[ending] += 1
                if ending not in ("overloaded", "resource_exhausted"):
                    return
                await asyncio.sleep(0.05 + dice.random() * 0.1)
            raise AssertionError("never admitted")

        async with asyncio.timeout(60):
            await asyncio.gather(*(one(number) for number in range(NUM_REQUESTS)))
    engine = worker._engine
    # Aborts of streams that were left are on their way still.
    async with asyncio.timeout(5):
        while engine.load.num_running or engine.load.num_waiting:
            await asyncio.sleep(0.01)
    assert engine.num_streams == 0
    assert (engine.load.num_running, engine.load.num_waiting, engine.load.num_outstanding_tokens) == (0, 0, 0)
    assert engine.load.kv_usage == 0
    await worker.check_health()
    # What clients saw, and what the engine says that it did.
    finished, refused = engine.stats.finished, engine.stats.refused
    assert finished.total() + refused.total() == endings.total() >= NUM_REQUESTS
    assert refused["overloaded"] == endings["overloaded"] + endings["resource_exhausted"]
    assert refused["invalid_argument"] == endings["invalid_argument"]
    # Who leaves doesn't hear how the request ended, if it did just then.
    unheard = {
        "length": finished["length"] - endings["length"],
        "deadline": finished["deadline"] + refused["deadline"] - endings["deadline"] - endings["deadline_exceeded"],
        "abort": finished["abort"] - endings["abort"],
    }
    assert min(unheard.values()) >= 0
    assert sum(unheard.values()) == endings["left"]
    assert engine.stats.num_preemptions > 0
    assert min(endings["length"], endings["left"], endings["abort"], refused["overloaded"], finished["deadline"]) > 0
