"""Every operation of a store is counted, with what became of it and how long it took."""

import asyncio
import inspect
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.support.clock import Clock
from tests.support.responses import stored_response

from chorus_cluster.config import StoreConfig
from chorus_cluster.errors import Unavailable
from chorus_cluster.store.database import Database
from chorus_cluster.store.metrics import StoreMetrics
from chorus_cluster.store.open import open_store
from chorus_cluster.store.responses import ResponseStore

OPERATIONS = {
    "add",
    "get",
    "status",
    "chain",
    "delete",
    "advance",
    "events",
    "last_event",
    "abandoned",
    "delete_expired",
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def store(database: Database, registry: CollectorRegistry) -> ResponseStore:
    return ResponseStore(database, ttl_s=1000.0, metrics=StoreMetrics(registry))


def count(registry: CollectorRegistry, operation: str, outcome: str = "ok") -> float | None:
    labels = {"operation": operation, "outcome": outcome}
    return registry.get_sample_value("chorus_gateway_store_operations_total", labels)


def seconds(registry: CollectorRegistry, operation: str, part: str) -> float | None:
    return registry.get_sample_value(f"chorus_gateway_store_operation_seconds_{part}", {"operation": operation})


async def test_each_is_counted_by_its_kind(store: ResponseStore, registry: CollectorRegistry) -> None:
    await store.add(stored_response("a", status="queued", has_events=True, lease_expires=5.0))
    assert await store.get("a", "ada") is not None
    assert await store.get("b", "ada") is None
    assert await store.status("a", "ada") == "queued"
    assert await store.chain("a", "ada") is not None
    assert await store.advance("a", [(0, "x")], lease_expires=5.0)
    assert await store.events("a", -1, 10) == [(0, "x")]
    assert await store.last_event("a") == 0
    assert len(await store.abandoned(6.0)) == 1
    assert await store.delete("a", "ada")
    assert await store.delete_expired() == 0
    assert {name for name in OPERATIONS if count(registry, name) == (2 if name == "get" else 1)} == OPERATIONS
    assert all(seconds(registry, name, "count") == count(registry, name) for name in OPERATIONS)


def test_there_is_no_operation_that_is_not_counted() -> None:
    methods = {name for name, held in vars(ResponseStore).items() if inspect.isfunction(held) and name[0] != "_"}
    assert methods == OPERATIONS


async def test_what_fails_is_counted_as_what_it_is(
    store: ResponseStore, database: Database, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drop(connection: AsyncConnection) -> None:
        await connection.execute(text("DROP TABLE response_events"))

    await database.write(drop)
    with pytest.raises(Unavailable):
        await store.last_event("a")
    assert count(registry, "last_event", "unavailable") == 1 and count(registry, "last_event") is None
    never = asyncio.Event()

    async def read(query: object) -> None:
        await never.wait()

    monkeypatch.setattr(database, "read", read)
    getting = asyncio.create_task(store.get("a", "ada"))
    await asyncio.sleep(0)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert count(registry, "get", "cancelled") == 1 and seconds(registry, "get", "count") == 1


def test_other_failures_and_times(registry: CollectorRegistry) -> None:
    clock = Clock()
    metrics = StoreMetrics(registry, clock)
    with pytest.raises(KeyError), metrics.measuring("get"):
        clock.now += 0.25
        raise KeyError
    assert count(registry, "get", "error") == 1
    assert seconds(registry, "get", "sum") == 0.25


async def test_a_store_that_is_opened_is_counted_where_it_is_said(tmp_path: Path, registry: CollectorRegistry) -> None:
    store = await open_store(StoreConfig(url=f"sqlite:///{tmp_path}/store.sqlite3"), registry)
    assert store is not None
    await store.get("a", "ada")
    assert count(registry, "get") == 1
    await store._database.close()
