"""When tokens are handed to a stream's reader."""

import asyncio

import pytest

from chorus_workers.engine.output import StepOutput, TokenLogprobs
from chorus_workers.engine.request import FinishReason, Refusal, RefusalReason, Refused
from chorus_workers.engine.stream import EngineDeadError, TokenChunk, TokenStream


class Owner:
    def __init__(self) -> None:
        self.forgotten: list[bool] = []

    def forget(self, stream: TokenStream, *, abort: bool) -> None:
        self.forgotten.append(abort)

    def next_delivery_at(self) -> float:
        return 42.0


async def test_tokens_wait_until_the_stream_is_woken() -> None:
    stream = TokenStream(Owner(), "0", "a")
    reading = asyncio.create_task(stream.read())
    stream.start(0.5, 3)
    stream.add(7, None)
    await asyncio.sleep(0)
    assert not reading.done()
    stream.wake()
    assert await reading == TokenChunk([7], queue_time_s=0.5, num_cached_tokens=3)
    assert stream.due_at == 42.0


async def test_a_slow_reader_gets_all_at_once_and_the_end_with_it() -> None:
    owner = Owner()
    stream = TokenStream(owner, "0", "a")
    for token_id in (1, 2, 3):
        stream.add(token_id, TokenLogprobs(-1.0, ()))
        stream.wake()
    stream.finish(FinishReason.STOP, "")
    chunk = await stream.read()
    assert (chunk.token_ids, len(chunk.logprobs), chunk.finish_reason) == ([1, 2, 3], 3, FinishReason.STOP)
    assert owner.forgotten == [False]


async def test_what_is_due_at_once() -> None:
    stream = TokenStream(Owner(), "0", "a")
    due_at = []
    for token_id in range(6):
        stream.add(token_id, None)
        due_at.append(stream.due_at)
        stream.wake()
        await stream.read()
    assert due_at == [0.0, 42.0, 42.0, 0.0, 42.0, 42.0], "the first token, and the first behind a header of three"
    stream.finish(FinishReason.STOP, "")
    assert stream.due_at == 0.0


async def test_a_failure_comes_after_the_tokens_that_are_here() -> None:
    stream = TokenStream(Owner(), "0", "a")
    stream.add(1, None)
    stream.fail(EngineDeadError("gone"))
    assert (await stream.read()).token_ids == [1]
    for _ in range(2):
        with pytest.raises(EngineDeadError):
            await stream.read()


async def test_a_refusal_wakes_the_reader() -> None:
    stream = TokenStream(Owner(), "0", "a")
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    stream.fail(Refused(Refusal(RefusalReason.OVERLOADED, "full", retry_after_s=2.0)))
    with pytest.raises(Refused) as caught:
        await reading
    assert caught.value.refusal.retry_after_s == 2.0


async def test_closing_aborts() -> None:
    owner = Owner()
    TokenStream(owner, "0", "a").close()
    assert owner.forgotten == [True]


def test_an_output_with_anything_in_it_is_true() -> None:
    assert not StepOutput()
    assert StepOutput(request_ids=["a"], token_ids=[7])
    assert StepOutput(started={"a": (0.5, 0)})
    assert StepOutput(finished={"a": (FinishReason.ABORT, "")})
    assert StepOutput(refused={"a": Refusal(RefusalReason.OVERLOADED, "full")})
