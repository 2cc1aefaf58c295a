"""The store, on both databases."""

from collections.abc import AsyncIterator

import pytest
from tests.support.clock import Clock

from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    database = Database(store_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> ResponseStore:
    return ResponseStore(database, ttl_s=1000.0, clock=clock)
