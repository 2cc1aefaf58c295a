import asyncio
import contextlib
import contextvars
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from chorus_cluster.errors import ChorusError, DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from chorus_cluster.routing.client import ServeEngineClient
from chorus_cluster.routing.retries import RetryPolicy
from chorus_protos.v1 import engine_pb2

STOP = 99


def lost() -> ActorUnavailableError:
    return ActorUnavailableError("gone", b"\0" * 16)


def tokens(*ids: int, finish: int = 0, **fields: Any) -> engine_pb2.GenerateResponse:
    return engine_pb2.GenerateResponse(token_ids=ids, finish_reason=finish, **fields)  # type: ignore[arg-type]


def refusal(reason: str, **fields: Any) -> engine_pb2.GenerateResponse:
    value = engine_pb2.RefusalReason.Value(f"REFUSAL_REASON_{reason}")
    return engine_pb2.GenerateResponse(refusal=engine_pb2.Refusal(reason=value, **fields))


class FakeStream:
    """Plays a script: responses, serialized as workers do, and exceptions to raise; at its end it stops, or hangs where
    it says so."""

    def __init__(self, script: Sequence[object]) -> None:
        self._script = list(script)
        self.num_cancels = 0

    async def __anext__(self) -> bytes:
        if not self._script:
            raise StopAsyncIteration
        step = self._script.pop(0)
        if step == "hang":
            await asyncio.Event().wait()
        if isinstance(step, BaseException):
            raise step
        assert isinstance(step, engine_pb2.GenerateResponse)
        return step.SerializeToString()

    def cancel(self) -> None:
        self.num_cancels += 1


class FakeWorkers:
    """One script for each attempt."""

    def __init__(self, *scripts: Sequence[object]) -> None:
        self.streams = [FakeStream(script) for script in scripts]
        self.requests: list[engine_pb2.GenerateRequest] = []
        self.retries: list[str] = []

    def generate(self, request: engine_pb2.GenerateRequest) -> FakeStream:
        self.requests.append(request)
        return self.streams[len(self.requests) - 1]

    async def model_info(self, request: engine_pb2.GetModelInfoRequest) -> engine_pb2.ModelInfo:
        return engine_pb2.ModelInfo(model="m")

    def client(self) -> ServeEngineClient:
        policy = RetryPolicy(max_attempts=3, backoff_s=0.0)
        return ServeEngineClient(self.generate, self.model_info, policy, self.retries.append)


def request(**fields: Any) -> engine_pb2.GenerateRequest:
    sampling = engine_pb2.SamplingParams(seed=5, stop_token_ids=[STOP])
    return engine_pb2.GenerateRequest(request_id="r", prompt_token_ids=[1, 2, 3], sampling=sampling, **fields)


async def collect(client: ServeEngineClient, asked: engine_pb2.GenerateRequest) -> list[engine_pb2.GenerateResponse]:
    return [response async for response in client.generate(asked)]


def ids(responses: Sequence[engine_pb2.GenerateResponse]) -> list[int]:
    return [token for response in responses for token in response.token_ids]


async def settle() -> None:
    """Lets whatever can go on go on; a short sleep may be over before it has, on a busy machine."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_stream_passes_through_and_its_call_is_ended() -> None:
    workers = FakeWorkers([tokens(10), tokens(11, 12), tokens(STOP, finish=1)])
    responses = await collect(workers.client(), request())
    assert ids(responses) == [10, 11, 12, STOP]
    assert responses[-1].finish_reason == engine_pb2.FINISH_REASON_STOP
    assert workers.streams[0].num_cancels == 1
    assert workers.retries == []


async def test_a_worker_s_death_is_hidden_and_the_next_one_goes_on_from_its_tokens() -> None:
    workers = FakeWorkers(
        [tokens(10, num_cached_tokens=2, queue_time_s=0.5), tokens(11), lost()],
        [tokens(12, num_cached_tokens=4, queue_time_s=0.1), tokens(STOP, finish=1)],
    )
    responses = await collect(workers.client(), request(max_tokens=50))
    assert ids(responses) == [10, 11, 12, STOP]
    again = workers.requests[1]
    assert list(again.prompt_token_ids) == [1, 2, 3, 10, 11]
    assert again.num_resumed_tokens == 2
    assert (again.max_tokens, again.sampling.seed, again.request_id) == (50, 5, "r")
    # The client's own numbers are those of the first attempt.
    assert [r.num_cached_tokens for r in responses] == [2, 0, 0, 0]
    assert [r.queue_time_s for r in responses] == [0.5, 0.0, 0.0, 0.0]
    assert workers.retries == ["worker_lost"]
    assert list(workers.requests[0].prompt_token_ids) == [1, 2, 3]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(lost(), id="actor"),
        pytest.param(
            grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata()), id="transport"
        ),
    ],
)
async def test_a_death_before_the_first_token_is_tried_elsewhere(failure: Exception) -> None:
    workers = FakeWorkers([failure], [tokens(10, finish=2)])
    assert ids(await collect(workers.client(), request())) == [10]
    assert workers.requests[1] == workers.requests[0]


async def test_a_stream_that_ends_without_a_finish_reason_is_continued() -> None:
    workers = FakeWorkers([tokens(10)], [], [tokens(11, finish=2)])
    assert ids(await collect(workers.client(), request())) == [10, 11]


async def test_when_workers_keep_dying_it_gives_up() -> None:
    workers = FakeWorkers([lost()], [tokens(10), lost()], [lost()])
    seen: list[int] = []
    with pytest.raises(Unavailable):
        async for response in workers.client().generate(request()):
            seen.extend(response.token_ids)
    assert seen == [10]
    assert len(workers.requests) == 3


@pytest.mark.parametrize(
    ("last", "fields", "finish"),
    [
        (STOP, {}, engine_pb2.FINISH_REASON_STOP),
        (11, {"max_tokens": 2}, engine_pb2.FINISH_REASON_LENGTH),
    ],
)
async def test_a_death_after_the_last_token_asks_for_no_more(last: int, fields: dict[str, int], finish: int) -> None:
    workers = FakeWorkers([tokens(10), tokens(last), lost()])
    responses = await collect(workers.client(), request(**fields))
    assert ids(responses) == [10, last]
    assert responses[-1].finish_reason == finish
    assert len(workers.requests) == 1


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (refusal("INVALID_ARGUMENT", message="too long", field="prompt_token_ids"), InvalidRequest),
        (refusal("DEADLINE", message="late"), DeadlineExceeded),
    ],
)
async def test_a_request_at_fault_is_refused_once(
    response: engine_pb2.GenerateResponse, error: type[ChorusError]
) -> None:
    workers = FakeWorkers([response])
    with pytest.raises(error) as caught:
        await collect(workers.client(), request())
    if isinstance(caught.value, InvalidRequest):
        assert (caught.value.field, caught.value.message) == ("prompt_token_ids", "prompt_token_ids: too long")
    assert workers.streams[0].num_cancels == 1


async def test_a_full_worker_is_passed_over_once_and_then_the_client_hears_when_to_retry() -> None:
    full = refusal("OVERLOADED", retry_after_s=2.5)
    workers = FakeWorkers([full], [tokens(10, finish=2)])
    assert ids(await collect(workers.client(), request())) == [10]
    workers = FakeWorkers([full], [full])
    with pytest.raises(Overloaded) as caught:
        await collect(workers.client(), request())
    assert caught.value.retry_after_s == 2.5


async def test_a_draining_worker_is_passed_over() -> None:
    draining = refusal("UNAVAILABLE", message="drains")
    workers = FakeWorkers([draining], [draining], [tokens(10, finish=2)])
    assert ids(await collect(workers.client(), request())) == [10]
    assert workers.retries == ["unavailable", "unavailable"]


async def test_a_resumed_stream_waits_for_room_since_its_client_has_bytes_already() -> None:
    full = refusal("OVERLOADED", retry_after_s=2.5)
    workers = FakeWorkers([tokens(10), lost()], [full], [tokens(11, finish=2)])
    assert ids(await collect(workers.client(), request())) == [10, 11]


async def test_each_attempt_is_a_call_of_its_own_to_serve() -> None:
    # Serve keeps the id of the HTTP request in a context variable, and makes the id of the call from it.
    of_the_http_request = contextvars.ContextVar("of_the_http_request", default="none")
    of_the_http_request.set("http")
    seen: list[str] = []
    workers = FakeWorkers([tokens(10), lost()], [tokens(11, finish=2)])

    def generate(asked: engine_pb2.GenerateRequest) -> FakeStream:
        seen.append(of_the_http_request.get())
        return workers.generate(asked)

    client = ServeEngineClient(generate, workers.model_info, RetryPolicy(max_attempts=2))
    assert ids(await collect(client, request())) == [10, 11]
    assert seen == ["none", "none"]


async def test_waits_double_up_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("chorus_cluster.routing.client.asyncio.sleep", sleep)
    draining = refusal("UNAVAILABLE")
    workers = FakeWorkers([draining], [tokens(10), lost()], [draining], [draining], [tokens(11, finish=2)])
    policy = RetryPolicy(max_attempts=5, backoff_s=0.1, max_backoff_s=0.3)
    client = ServeEngineClient(workers.generate, workers.model_info, policy)
    assert ids(await collect(client, request())) == [10, 11]
    # A worker that died was not busy: the next one is asked at once.
    assert waits == [0.1, 0.2, 0.3]


async def test_a_request_that_came_resumed_counts_on() -> None:
    workers = FakeWorkers([tokens(10), lost()], [tokens(11, finish=2)])
    await collect(workers.client(), request(num_resumed_tokens=2, max_tokens=9))
    assert workers.requests[1].num_resumed_tokens == 3


async def test_a_resumed_stream_s_patience_ends() -> None:
    full = refusal("OVERLOADED", retry_after_s=2.5)
    workers = FakeWorkers([tokens(10), lost()], *([full] for _ in range(5)))
    policy = RetryPolicy(max_attempts=2, backoff_s=0.001, max_backoff_s=0.002, patience_s=0.006)
    client = ServeEngineClient(workers.generate, workers.model_info, policy)
    with pytest.raises(Overloaded):
        await collect(client, request())
    # 1 + 2 + 2 ms are within 6 ms, another 2 are not: more refusals than attempts, since the client has tokens.
    assert len(workers.requests) == 1 + 4


async def test_serve_s_own_backpressure_is_an_overload() -> None:
    full = BackPressureError(1, 1, retry_after_s=3.0)
    workers = FakeWorkers([full], [full])
    with pytest.raises(Overloaded) as caught:
        await collect(workers.client(), request())
    assert caught.value.retry_after_s == 3.0


async def test_serve_s_own_backpressure_does_not_end_a_resumed_stream() -> None:
    workers = FakeWorkers([tokens(10), lost()], [BackPressureError(1, 1, retry_after_s=3.0)], [tokens(11, finish=2)])
    assert ids(await collect(workers.client(), request())) == [10, 11]
    assert workers.retries == ["worker_lost", "overloaded"]


async def test_closing_the_iterator_ends_the_call_at_once() -> None:
    workers = FakeWorkers([tokens(10), tokens(11), "hang"])
    stream = workers.client().generate(request())
    assert ids([await anext(stream)]) == [10]
    await stream.aclose()  # type: ignore[attr-defined]
    assert workers.streams[0].num_cancels == 1


@pytest.mark.parametrize("script", [["hang"], [tokens(10), "hang"]])
async def test_cancelling_the_reader_ends_the_call(script: list[object]) -> None:
    workers = FakeWorkers(script)
    reading = asyncio.create_task(collect(workers.client(), request()))
    await asyncio.sleep(0.01)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    assert reading.cancelled()
    await settle()
    assert workers.streams[0].num_cancels == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


class ServeLikeStream:
    """Keeps Serve's rules: a call is assigned in a task, and can be cancelled once the stream holds what it gave."""

    def __init__(self) -> None:
        self.assigned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_running = False
        self._is_held = False
        self._is_cancelled = False
        self._token = asyncio.Event()

    def assign(self) -> None:
        if not self.assigned.done():
            self.is_running = True
            self.assigned.set_result("replica")

    async def __anext__(self) -> bytes:
        if not self._is_held:
            await self.assigned
            self._is_held = True
        try:
            await self._token.wait()
        except asyncio.CancelledError:
            self.is_running = False
            raise
        return tokens(10).SerializeToString()

    def cancel(self) -> None:
        if self._is_cancelled:
            return
        self._is_cancelled = True
        self.assigned.cancel()
        if self._is_held:
            self.is_running = False


@pytest.mark.parametrize("num_turns", range(5))
async def test_leaving_around_the_moment_of_assignment_never_loses_the_call(num_turns: int) -> None:
    stream = ServeLikeStream()
    workers = FakeWorkers()
    client = ServeEngineClient(lambda _: stream, workers.model_info, RetryPolicy(max_attempts=1))
    reading = asyncio.create_task(collect(client, request()))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_soon(stream.assign)
    for _ in range(num_turns):
        await asyncio.sleep(0)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    await settle()
    assert not stream.is_running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_deadline_is_kept_even_if_no_worker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus_cluster.routing.client._DEADLINE_GRACE_S", 0.01)
    workers = FakeWorkers(["hang"])
    with pytest.raises(DeadlineExceeded):
        await collect(workers.client(), request(deadline_unix_s=time.time() - 1))
    await settle()
    assert workers.streams[0].num_cancels == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_wait_for_room_goes_beyond_the_deadline() -> None:
    full = BackPressureError(1, 1, retry_after_s=60.0)
    workers = FakeWorkers([tokens(10), lost()], *([full] for _ in range(9)))
    policy = RetryPolicy(max_attempts=2, backoff_s=0.01, max_backoff_s=60.0)
    client = ServeEngineClient(workers.generate, workers.model_info, policy)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await collect(client, request(deadline_unix_s=time.time() + 0.1))
    assert time.monotonic() - started < 30
    assert len(workers.requests) > 2


async def test_a_deadline_ahead_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus_cluster.routing.client._DEADLINE_GRACE_S", 0.0)

    class Late(FakeStream):
        async def __anext__(self) -> bytes:
            await asyncio.sleep(0.02)
            return await super().__anext__()

    workers = FakeWorkers()
    workers.streams = [Late([tokens(10, finish=2)])]
    assert ids(await collect(workers.client(), request(deadline_unix_s=time.time() + 30))) == [10]


async def test_the_model_is_asked_of_another_worker_when_one_dies() -> None:
    answers: list[object] = [lost(), engine_pb2.ModelInfo(model="m")]

    async def model_info(_: engine_pb2.GetModelInfoRequest) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    workers = FakeWorkers()
    client = ServeEngineClient(workers.generate, model_info, RetryPolicy(max_attempts=2))
    assert (await client.model_info()).model == "m"
    answers[:] = [lost(), lost()]
    with pytest.raises(Unavailable):
        await client.model_info()
