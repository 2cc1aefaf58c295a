"""Several streams, the answers to one request with `n`: started, read and ended together."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.stream import ChatStream

Result = TypeVar("Result")


async def all_or_none(starts: Iterable[Coroutine[Any, Any, ChatStream]], first: ChatStream) -> list[ChatStream]:
    """The streams that `starts` make, side by side. If one fails, the others and `first` are closed, and it raises."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        return await asyncio.gather(*tasks)
    except (Exception, asyncio.CancelledError):
        await _end(tasks)
        started = [task.result() for task in tasks if not task.cancelled() and task.exception() is None]
        await close_all([first, *started])
        raise


async def together(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Their results. If one fails, the others are cancelled, and it raises."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def merged(streams: Sequence[ChatStream]) -> AsyncGenerator[tuple[int, list[ev.Event]], None]:
    """(stream's index, events) as they come. Whoever reads slowly gets more at once, of each.

    Errors: the first of any stream, after what that one had before.
    """
    if len(streams) == 1:
        # The usual case, without a queue and a task.
        async for events in streams[0]:
            yield 0, events
        return
    # A place for one: what waits beyond it is merged in its stream.
    queue: asyncio.Queue[tuple[int, list[ev.Event] | Exception | None]] = asyncio.Queue(1)

    async def read(index: int, stream: ChatStream) -> None:
        try:
            async for events in stream:
                await queue.put((index, events))
        except Exception as error:  # Handed over to whoever reads.
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    num_running = len(readers)
    try:
        while num_running:
            index, item = await queue.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        await _end(readers)


async def close_all(streams: Sequence[ChatStream]) -> None:
    if len(streams) == 1:
        # The usual case, without a task.
        await streams[0].aclose()
    else:
        await asyncio.gather(*(stream.aclose() for stream in streams))


def total(usages: Sequence[ev.Usage]) -> ev.Usage:
    """What one request has used for all its answers: its prompt counts once."""
    return ev.Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=usages[0].cached_tokens,
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )


def total_of_prompts(usages: Sequence[ev.Usage], n: int) -> ev.Usage:
    """What `n` answers to each of several prompts have used, in the prompts' order: each prompt counts once."""
    prompts = [total(usages[start : start + n]) for start in range(0, len(usages), n)]
    return ev.Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
        completion_tokens=sum(usage.completion_tokens for usage in prompts),
        cached_tokens=sum(usage.cached_tokens for usage in prompts),
        reasoning_tokens=0,
    )


async def _end(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
