"""Clients that leave or are slow, seen from the service: nothing is lost, nothing goes on running."""

import asyncio
import dataclasses
import gc
import time
from collections.abc import AsyncGenerator

import pytest
from tests.support.chat import ANSWER, encode, eventually

from chorus_cluster.errors import ChorusError, DeadlineExceeded, ModelNotFound, RequestFailed, Unavailable
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway import stream as stream_module
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.completion import collect
from chorus_cluster.gateway.model_info import ModelInfoCache
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.harmony.conversation import Message, Role
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import engine_pb2

REQUEST = ChatRequest(model="fake-model", messages=(Message(Role.USER, "Hi"),))


def outcomes(service: ChatService) -> dict[str, float]:
    samples = next(iter(service.metrics.outcomes.collect())).samples
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name.endswith("_total")}


def num_running(service: ChatService) -> float:
    return service.metrics.registry.get_sample_value("chorus_gateway_chats_running") or 0.0


async def test_closing_aborts_the_engine_request(service: ChatService, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    stream = await service.start(REQUEST)
    assert engine.num_running == 1
    assert num_running(service) == 1
    await stream.aclose()
    assert (engine.num_running, engine.num_aborted) == (0, 1)
    assert num_running(service) == 0
    assert outcomes(service) == {"client_left": 1}


async def test_closing_before_the_reader_ran(service: ChatService, engine: FakeEngineClient) -> None:
    stream = await service.start(REQUEST)
    # No step of the event loop lies between start's return and this: the reader has not begun.
    await stream.aclose()
    await stream.aclose()
    assert (engine.num_running, engine.num_aborted) == (0, 1)
    assert outcomes(service) == {"client_left": 1}


async def test_closing_lets_the_engine_be_told() -> None:
    class ClosesSlowly(FakeEngineClient):
        has_closed = False

        async def generate(
            self, request: engine_pb2.GenerateRequest
        ) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
            try:
                async for response in FakeEngineClient.generate(self, request):
                    yield response
            finally:
                await asyncio.sleep(0.01)
                ClosesSlowly.has_closed = True

    stream = await ChatService(ClosesSlowly(encode(ANSWER))).start(REQUEST)
    async for events in stream:
        if isinstance(events[-1], ev.Finished):
            break
    await stream.aclose()
    assert ClosesSlowly.has_closed


async def test_closing_a_whole_answer_before_the_reader_ran(service: ChatService, engine: FakeEngineClient) -> None:
    engine.script = encode("<|return|>")
    stream = await service.start(REQUEST)
    await stream.aclose()
    assert outcomes(service) == {"stop": 1}


async def test_cancelled_before_admission() -> None:
    class Queueing(FakeEngineClient):
        async def model_info(self) -> engine_pb2.ModelInfo:
            await asyncio.sleep(60)
            raise AssertionError("nobody waits that long")

    service = ChatService(Queueing([]))
    task = asyncio.create_task(service.start(REQUEST))
    await eventually(lambda: num_running(service) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert num_running(service) == 0
    assert outcomes(service) == {"client_left": 1}


async def test_cancelled_reader_task_ends_everything(service: ChatService, engine: FakeEngineClient) -> None:
    engine.interval_s = 0.001
    stream = await service.start(REQUEST)
    task = asyncio.create_task(collect(stream))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    assert engine.num_running == 0


async def test_slow_client_gets_merged_pieces(service: ChatService, engine: FakeEngineClient) -> None:
    stream = await service.start(REQUEST)
    await eventually(lambda: engine.num_running == 0)
    batches = [events async for events in stream]
    assert batches == [
        [
            ev.Reasoning("The user greets."),
            ev.Answer("Hello there, friend."),
            ev.Finished(
                "stop",
                ev.Usage(
                    prompt_tokens=len(engine.requests[0].prompt_token_ids),
                    completion_tokens=len(encode(ANSWER)),
                    cached_tokens=0,
                    reasoning_tokens=len(encode("The user greets.")),
                ),
            ),
        ]
    ]


async def test_slow_client_is_not_buffered_without_end(
    service: ChatService, engine: FakeEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "MAX_WAITING_EVENTS", 3)
    stream = await service.start(REQUEST)
    for _ in range(100):
        await asyncio.sleep(0)
    assert engine.num_running == 1, "the reader should have stopped taking responses"
    completion = await collect(stream)
    assert completion.content == "Hello there, friend."
    assert engine.num_running == 0


async def test_client_that_keeps_up_gets_each_message(service: ChatService, engine: FakeEngineClient) -> None:
    engine.interval_s = 0.001
    stream = await service.start(REQUEST)
    texts = [event.text async for events in stream for event in events if isinstance(event, ev.Answer)]
    assert texts == ["Hello", " there", ",", " friend", "."]


async def test_errors_come_after_the_events_before_them(service: ChatService, engine: FakeEngineClient) -> None:
    engine.failure = (len(encode(ANSWER)) - 1, RequestFailed())
    stream = await service.start(REQUEST)
    text = ""
    with pytest.raises(RequestFailed):
        async for events in stream:
            text += "".join(event.text for event in events if isinstance(event, ev.Answer))
    assert text == "Hello there, friend."
    assert outcomes(service) == {"request_failed": 1}
    await stream.aclose()


async def test_tokens_beside_a_failure_are_delivered_before_it(service: ChatService, engine: FakeEngineClient) -> None:
    engine.script = encode("<|channel|>final<|message|>Hello there, fr")
    engine.tokens_per_message = 100
    engine.finish_reason = engine_pb2.FINISH_REASON_DEADLINE
    # What the stop string holds back isn't lost either.
    stream = await service.start(dataclasses.replace(REQUEST, stop=("friend",)))
    text = ""
    with pytest.raises(DeadlineExceeded):
        async for events in stream:
            text += "".join(event.text for event in events if isinstance(event, ev.Answer))
    assert text == "Hello there, fr"
    assert outcomes(service) == {"deadline_exceeded": 1}
    await stream.aclose()


async def test_an_answer_that_a_stop_string_ended_has_not_failed(
    service: ChatService, engine: FakeEngineClient
) -> None:
    engine.script = encode("<|channel|>final<|message|>Hello there, fr")
    engine.tokens_per_message = 100
    engine.finish_reason = engine_pb2.FINISH_REASON_DEADLINE
    stream = await service.start(dataclasses.replace(REQUEST, stop=(", fr",)))
    completion = await collect(stream)
    assert (completion.content, completion.finished.reason) == ("Hello there", "stop")
    await stream.aclose()


async def test_stream_without_a_finish_reason() -> None:
    class EndsEarly(FakeEngineClient):
        async def generate(
            self, request: engine_pb2.GenerateRequest
        ) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
            yield engine_pb2.GenerateResponse(token_ids=encode("<|channel|>final<|message|>Hel"))

    stream = await ChatService(EndsEarly([])).start(REQUEST)
    with pytest.raises(Unavailable):
        await collect(stream)
    await stream.aclose()


async def test_closing_a_failed_stream_is_quiet(service: ChatService, engine: FakeEngineClient) -> None:
    engine.failure = (2, RequestFailed())
    stream = await service.start(REQUEST)
    await eventually(lambda: engine.num_running == 0)
    await stream.aclose()
    del stream
    gc.collect()  # A task whose exception nobody took would complain now, and warnings are errors.


async def test_nothing_runs_after_any_kind_of_end(service: ChatService, engine: FakeEngineClient) -> None:
    """Churn: requests that finish, fail, are refused and are left at random moments."""
    engine.interval_s = 0.0005

    async def one(i: int) -> None:
        request = REQUEST if i % 5 else ChatRequest(model="other", messages=REQUEST.messages)
        try:
            async with asyncio.timeout(0.004 * (i % 23) if i % 4 else None):
                stream = await service.start(request)
                try:
                    await collect(stream)
                finally:
                    await stream.aclose()
        except (TimeoutError, ChorusError):
            pass

    await asyncio.gather(*map(one, range(200)))
    assert engine.num_running == 0
    assert num_running(service) == 0
    counted = outcomes(service)
    assert sum(counted.values()) == 200
    assert set(counted) == {"stop", "client_left", ModelNotFound.code}


async def test_deadline_holds_while_no_worker_has_ever_answered() -> None:
    class Silent(FakeEngineClient):
        async def model_info(self) -> engine_pb2.ModelInfo:
            await asyncio.Event().wait()
            raise AssertionError

    service = ChatService(Silent([]))
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(service.start(REQUEST, deadline_unix_s=time.time() + 0.02), 5)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(service.start(REQUEST, deadline_unix_s=time.time() - 1), 5)
    assert outcomes(service) == {"deadline_exceeded": 2}


async def test_time_to_first_token_needs_a_token(service: ChatService, engine: FakeEngineClient) -> None:
    engine.script = []
    engine.finish_reason = engine_pb2.FINISH_REASON_DEADLINE
    with pytest.raises(DeadlineExceeded):
        await service.start(REQUEST)
    count = service.metrics.registry.get_sample_value("chorus_gateway_time_to_first_token_seconds_count")
    assert count == 0


async def test_model_info_is_asked_once() -> None:
    num_asked = 0

    class Counting(FakeEngineClient):
        async def model_info(self) -> engine_pb2.ModelInfo:
            nonlocal num_asked
            num_asked += 1
            await asyncio.sleep(0)
            return await FakeEngineClient.model_info(self)

    service = ChatService(Counting([]))
    infos = await asyncio.gather(*(service.models.get() for _ in range(10)))
    assert {info.model for info in infos} == {"fake-model"}
    assert num_asked == 1
    await service.models.get()
    assert num_asked == 1


async def test_model_info_is_renewed_beside_requests() -> None:
    engine = FakeEngineClient([])
    now = 0.0
    models = ModelInfoCache(engine, clock=lambda: now)
    assert (await models.get()).max_model_len == 4096
    engine.max_model_len = 8192
    now = 9.0
    assert (await models.get()).max_model_len == 4096
    now = 11.0
    assert (await models.get()).max_model_len == 4096, "nobody waits for the renewal"
    await asyncio.sleep(0.01)
    assert (await models.get()).max_model_len == 8192
    engine.refusal = Unavailable()
    now = 30.0
    assert (await models.get()).max_model_len == 8192
    await asyncio.sleep(0.01)
    assert (await models.get()).max_model_len == 8192, "the last answer stays when the workers don't answer"
