"""Several streams read as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """(stream's index, item) as they come. All streams are closed at the end.

    Errors: the first of any stream, after what that one had before.
    """
    # A place for one: who reads slowly holds up the streams, not memory.
    queue: asyncio.Queue[tuple[int, Item | BaseException | None]] = asyncio.Queue(1)

    async def read(index: int, stream: AsyncGenerator[Item, None]) -> None:
        try:
            async for item in stream:
                await queue.put((index, item))
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
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
