"""Writes that wait for one another are committed together, and fail alone."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.support.responses import stored_response

from chorus_cluster.errors import Unavailable
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore
from chorus_cluster.store.writes import GroupedWrites


async def test_what_waits_goes_into_one_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    num_transactions = 0
    write = database.write

    async def counted(operation):  # type: ignore[no-untyped-def]
        nonlocal num_transactions
        num_transactions += 1
        return await write(operation)

    monkeypatch.setattr(database, "write", counted)
    writes, order = GroupedWrites(database), []

    async def note(connection: AsyncConnection, number: int) -> int:
        await connection.exec_driver_sql("SELECT 1")
        order.append(number)
        return number * 2

    results = await asyncio.gather(*(writes.run(lambda c, i=i: note(c, i)) for i in range(100)))  # type: ignore[misc]
    assert results == [2 * i for i in range(100)]
    assert order == [*range(100)]
    assert num_transactions == 2


async def test_one_that_fails_fails_alone(store: ResponseStore) -> None:
    await store.add(stored_response("r0"))
    ids = ["r1", "r0", "r2", "r1", "r3"]
    done = await asyncio.gather(*(store.add(stored_response(id)) for id in ids), return_exceptions=True)
    assert [type(error) for error in done] == [type(None), Unavailable, type(None), Unavailable, type(None)]
    assert all([await store.get(id, "ada") is not None for id in ids])


async def test_an_operations_own_error_is_its_callers(database: Database) -> None:
    async def wrong(connection: AsyncConnection) -> None:
        raise ZeroDivisionError

    async def right(connection: AsyncConnection) -> int:
        return 5

    writes = GroupedWrites(database)
    results = await asyncio.gather(writes.run(wrong), writes.run(right), return_exceptions=True)
    assert isinstance(results[0], ZeroDivisionError) and results[1] == 5


async def test_who_is_cancelled_takes_nobody_along(store: ResponseStore) -> None:
    adding = [asyncio.create_task(store.add(stored_response(f"r{i}"))) for i in range(3)]
    await asyncio.sleep(0)
    adding[1].cancel()
    await asyncio.wait(adding)
    assert await store.get("r0", "ada") is not None and await store.get("r2", "ada") is not None
