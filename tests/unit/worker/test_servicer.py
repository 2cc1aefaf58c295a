"""EngineService over a real channel."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.unit.worker.conftest import BODY, fake_config, start_worker

from chorus_cluster.client.failures import to_error
from chorus_cluster.errors import InvalidRequest, Overloaded
from chorus_protos.v1 import engine_pb2, engine_pb2_grpc
from chorus_workers.runner.fake import FakeModel
from chorus_workers.worker import Worker

if TYPE_CHECKING:
    Stub = engine_pb2_grpc.EngineServiceAsyncStub
else:
    Stub = engine_pb2_grpc.EngineServiceStub


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    config = fake_config(
        FakeModel(step_time_s=0.002, body=BODY),
        grpc_port=0,
        max_num_seqs=1,
        max_batched_tokens=64,
        max_queued_requests=1,
    )
    worker = await start_worker(config)
    yield worker
    await worker.shutdown()


@pytest.fixture
async def channel(worker: Worker) -> AsyncIterator[grpc.aio.Channel]:
    assert worker.grpc_address is not None
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Stub:
    return engine_pb2_grpc.EngineServiceStub(channel)


def ask(request_id: str = "a", max_tokens: int = 5, **fields: object) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3],
        max_tokens=max_tokens,
        **fields,  # type: ignore[arg-type]
    )


async def wait_until_idle(stub: Stub) -> engine_pb2.EngineLoad:
    async with asyncio.timeout(5):
        while True:
            load = await stub.GetLoad(engine_pb2.GetLoadRequest())
            if load.num_running == load.num_waiting == 0 and load.kv_usage == 0:
                return load
            await asyncio.sleep(0.01)


async def wait_until_running(stub: Stub) -> None:
    async with asyncio.timeout(5):
        while (await stub.GetLoad(engine_pb2.GetLoadRequest())).num_running == 0:
            await asyncio.sleep(0.01)


async def test_an_answer_streams(stub: Stub) -> None:
    responses = [response async for response in stub.Generate(ask())]
    assert [token_id for response in responses for token_id in response.token_ids] == [BODY] * 5
    assert responses[-1].finish_reason == engine_pb2.FINISH_REASON_LENGTH


async def test_model_info(stub: Stub) -> None:
    info = await stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
    assert (info.model, info.vocab_size, info.num_shards) == ("fake", 201088, 1)
    assert info.max_model_len <= info.num_kv_blocks * info.kv_block_size


async def test_an_invalid_argument_is_a_status_that_names_the_field(
    stub: Stub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stub.Generate(ask(sampling=engine_pb2.SamplingParams(temperature=-1)))))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    metadata = dict(tuple(pair) for pair in caught.value.trailing_metadata())
    assert metadata["field"] == "sampling.temperature"
    status = Status.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (3, caught.value.details())
    error = to_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.field == "sampling.temperature"


async def test_a_full_queue_is_resource_exhausted_with_a_hint_when_to_retry(
    stub: Stub,
) -> None:
    running = stub.Generate(ask("a", 100_000))
    await running.read()
    waiting = stub.Generate(ask("b", 100_000))
    async with asyncio.timeout(5):
        while (await stub.GetLoad(engine_pb2.GetLoadRequest())).num_waiting == 0:
            await asyncio.sleep(0.01)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stub.Generate(ask("c"))))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    hint = dict(tuple(pair) for pair in caught.value.trailing_metadata())["retry-after-ms"]
    assert int(hint) >= 100
    error = to_error(caught.value)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == int(hint) / 1000
    running.cancel()
    waiting.cancel()
    await wait_until_idle(stub)


async def test_cancelling_a_call_frees_its_memory(stub: Stub) -> None:
    call = stub.Generate(ask(max_tokens=100_000))
    await call.read()
    await wait_until_running(stub)
    call.cancel()
    await wait_until_idle(stub)


async def test_the_call_s_deadline_ends_the_request(stub: Stub) -> None:
    call = stub.Generate(ask(max_tokens=100_000), timeout=0.3)
    # Both ends watch the deadline: either the channel is first, or the engine.
    try:
        responses = [response async for response in call]
        assert responses[-1].finish_reason == engine_pb2.FINISH_REASON_DEADLINE
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until_idle(stub)


async def test_the_request_s_deadline_is_a_finish_reason(stub: Stub) -> None:
    responses = [r async for r in stub.Generate(ask(max_tokens=100_000, deadline_unix_s=time.time() + 0.2))]
    assert responses[-1].finish_reason == engine_pb2.FINISH_REASON_DEADLINE
    assert sum(len(response.token_ids) for response in responses) > 10


async def test_abort_by_id(stub: Stub) -> None:
    call = stub.Generate(ask("abc", 100_000))
    await anext(aiter(call))
    await stub.Abort(engine_pb2.AbortRequest(request_id="abc"))
    await stub.Abort(engine_pb2.AbortRequest(request_id="never seen"))
    responses = [response async for response in call]
    assert responses[-1].finish_reason == engine_pb2.FINISH_REASON_ABORT
    await wait_until_idle(stub)


async def test_health_and_reflection(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "chorus.v1.EngineService"):
        response = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert "chorus.v1.EngineService" in names


async def test_a_dead_engine_is_unavailable_and_not_serving(
    worker: Worker, channel: grpc.aio.Channel, stub: Stub
) -> None:
    call = stub.Generate(ask(max_tokens=100_000))
    await anext(aiter(call))
    os.kill(worker._engine.pid, 9)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stub.Generate(ask("b"))))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
