"""Many small writes in few transactions.

Beginning and committing costs several times what a row does, and SQLite has one writer at a time anyway. So what is to
be written while a transaction runs goes into the next one, all of it together.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from chorus_cluster.store.database import Database

Result = TypeVar("Result")
Operation = Callable[[AsyncConnection], Awaitable[Any]]

_MAX_TOGETHER: Final = 64


@dataclass(frozen=True, slots=True)
class _Write:
    operation: Operation
    done: "asyncio.Future[Any]"


class GroupedWrites:
    """Each operation happens wholly or not at all, in the order of the calls; one that fails fails alone."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Write] = []
        self._writing: asyncio.Task[None] | None = None

    async def run(self, operation: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Returns what the operation does, when it is committed. It may be run twice, the first time for nothing; a
        caller that is cancelled may have written.

        Errors: Unavailable, and the operation's own.
        """
        write = _Write(operation, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        result: Result = await write.done
        return result

    async def _write(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting[:_MAX_TOGETHER], self._waiting[_MAX_TOGETHER:]
                try:
                    await self._commit(together)
                except Exception:  # Of one of them; whose it is, shows below.
                    await self._commit_each(together)
        finally:
            self._writing = None

    async def _commit(self, writes: Sequence[_Write]) -> None:
        async def all_of_them(connection: AsyncConnection) -> list[Any]:
            return [await write.operation(connection) for write in writes]

        results = await self._database.write(all_of_them)
        for write, result in zip(writes, results, strict=True):
            if not write.done.done():
                write.done.set_result(result)

    async def _commit_each(self, writes: Sequence[_Write]) -> None:
        for write in writes:
            try:
                await self._commit([write])
            except Exception as error:  # Handed over to whoever waits.
                if not write.done.done():
                    write.done.set_exception(error)
