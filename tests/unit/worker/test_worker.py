import asyncio
import os
import socket

import psutil
import pytest
from tests.unit.worker.conftest import BODY, PREFIX, STOP, fake_config, start_worker

from chorus_protos.v1 import engine_pb2
from chorus_workers.config import WorkerConfig
from chorus_workers.engine.client import AsyncEngine
from chorus_workers.engine.stream import EngineDeadError
from chorus_workers.worker import Worker

STOPPING = engine_pb2.SamplingParams(stop_token_ids=[STOP], seed=1)


async def collect(worker: Worker, request: engine_pb2.GenerateRequest) -> list[engine_pb2.GenerateResponse]:
    return [response async for response in worker.generate(request)]


async def test_an_answer_comes_first_token_first_then_merged(worker: Worker) -> None:
    responses = await collect(
        worker, engine_pb2.GenerateRequest(request_id="a", prompt_token_ids=[1, 2], max_tokens=50, sampling=STOPPING)
    )
    token_ids = [token_id for response in responses for token_id in response.token_ids]
    assert token_ids == [*PREFIX, *[BODY] * 8, STOP]
    assert list(responses[0].token_ids) == [PREFIX[0]]
    assert responses[0].queue_time_s > 0
    assert len(responses) <= 6
    assert [response.finish_reason for response in responses[:-1]] == [0] * (len(responses) - 1)
    assert responses[-1].finish_reason == engine_pb2.FINISH_REASON_STOP


async def test_a_handle_gets_the_same_answer_serialized_and_ends_it_by_closing(worker: Worker) -> None:
    request = engine_pb2.GenerateRequest(request_id="a", prompt_token_ids=[1, 2], max_tokens=50, sampling=STOPPING)
    pieces = [engine_pb2.GenerateResponse.FromString(piece) async for piece in worker.generate_serialized(request)]
    assert [token_id for piece in pieces for token_id in piece.token_ids] == [*PREFIX, *[BODY] * 8, STOP]
    assert pieces[-1].finish_reason == engine_pb2.FINISH_REASON_STOP
    left = worker.generate_serialized(request)
    await anext(left)
    assert worker._engine.num_streams == 1
    await left.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert worker._engine.num_streams == 0


async def test_an_invalid_request_is_refused_by_name(worker: Worker) -> None:
    (response,) = await collect(worker, engine_pb2.GenerateRequest(request_id="a"))
    assert response.refusal.reason == engine_pb2.REFUSAL_REASON_INVALID_ARGUMENT
    assert response.refusal.field == "prompt_token_ids"
    assert 'chorus_requests_refused_total{reason="invalid_argument"} 1.0' in worker.metrics_page()


async def test_the_death_of_the_engine_process_ends_every_stream_and_fails_health(worker: Worker) -> None:
    requests = [engine_pb2.GenerateRequest(request_id=str(i), prompt_token_ids=[1]) for i in range(3)]
    streams = [worker.generate(request) for request in requests]
    for stream in streams:
        await anext(stream)
    await worker.check_health()
    os.kill(worker._engine.pid, 9)
    for stream in streams:
        with pytest.raises(EngineDeadError):
            async with asyncio.timeout(5):
                async for _ in stream:
                    pass
    with pytest.raises(EngineDeadError):
        await worker.check_health()
    (response,) = await collect(worker, requests[0])
    assert response.refusal.reason == engine_pb2.REFUSAL_REASON_UNAVAILABLE


async def test_an_engine_that_dies_as_it_has_started_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start_and_die(config: WorkerConfig) -> AsyncEngine:
        engine = await start(config)
        os.kill(engine.pid, 9)
        async with asyncio.timeout(5):
            while engine._death is None:
                await asyncio.sleep(0.01)
        return engine

    start = AsyncEngine.start
    monkeypatch.setattr(AsyncEngine, "start", start_and_die)
    with pytest.raises(EngineDeadError):
        await start_worker(fake_config())
    assert not psutil.Process().children()


async def test_a_port_that_is_taken_stops_the_start_and_leaves_no_process_behind() -> None:
    before = psutil.Process().children()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RuntimeError, match="Failed to bind"):
            await start_worker(fake_config(grpc_port=taken.getsockname()[1]))
    assert psutil.Process().children() == before
