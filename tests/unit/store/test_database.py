"""Whoever asks the database for something and goes."""

import asyncio
import gc
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncConnection

from chorus_cluster.store.database import Database
from chorus_cluster.store.models import ResponseRow


def ask(connection: AsyncConnection) -> Awaitable[Any]:
    return connection.exec_driver_sql("SELECT 1")


def table_names(connection: Connection) -> list[str]:
    return inspect(connection).get_table_names()


async def test_whoever_is_cancelled_costs_no_connection(tmp_path: Path) -> None:
    """One that nobody closed says so when it is collected, and warnings are errors here."""
    for num_steps in range(30):
        database = Database(f"sqlite:///{tmp_path}/store.sqlite3")
        asking = [asyncio.create_task(each(ask)) for each in (database.read, database.write, database.read)]
        for _ in range(num_steps):
            await asyncio.sleep(0.0001)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await database.close()
        gc.collect()


async def test_what_had_begun_is_written(database: Database) -> None:
    has_begun = asyncio.Event()

    async def write(connection: AsyncConnection) -> None:
        has_begun.set()
        await asyncio.sleep(0.01)
        await connection.exec_driver_sql("DROP TABLE response_events")

    writing = asyncio.create_task(database.write(write))
    await has_begun.wait()
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    await database.close()
    tables = await database.read(lambda connection: connection.run_sync(table_names))
    assert ResponseRow.__tablename__ in tables and "response_events" not in tables
