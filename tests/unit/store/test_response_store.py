"""Stored responses, on both databases."""

import asyncio

import pytest
from tests.support import postgresql
from tests.support.clock import Clock
from tests.support.responses import ODD_TEXT
from tests.support.responses import stored_response as response

from chorus_cluster.errors import Unavailable
from chorus_cluster.store import responses as responses_module
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore, StoredResponse


def running(id: str, lease_expires: float) -> StoredResponse:
    return response(id, status="in_progress", has_events=True, lease_expires=lease_expires)


async def test_what_is_kept_is_found_as_it_was(store: ResponseStore) -> None:
    kept = response("r1")
    await store.add(kept)
    assert await store.get("r1", "ada") == kept
    assert await store.status("r1", "ada") == "completed"
    assert await store.get("r2", "ada") is None


async def test_another_owner_finds_and_deletes_nothing(store: ResponseStore) -> None:
    await store.add(response("r1"))
    for owner in ("bob", ""):
        assert await store.get("r1", owner) is None
        assert await store.status("r1", owner) is None
        assert await store.chain("r1", owner) is None
        assert not await store.delete("r1", owner)
    assert await store.get("r1", "ada") is not None


async def test_a_chain_is_of_one_owner(store: ResponseStore) -> None:
    await store.add(response("r1", owner="bob"))
    # Nobody can make this by the API; it must not matter.
    await store.add(response("r2", previous_id="r1"))
    chain = await store.chain("r2", "ada")
    assert chain is not None
    assert ([each.id for each in chain.links], chain.is_whole) == (["r2"], False)


async def test_a_chain_is_oldest_first(store: ResponseStore) -> None:
    await store.add(response("r1"))
    await store.add(response("r2", previous_id="r1"))
    await store.add(response("r3", previous_id="r2"))
    await store.add(response("other", previous_id="r1"))
    chain = await store.chain("r3", "ada")
    assert chain is not None
    assert ([each.id for each in chain.links], chain.is_whole) == (["r1", "r2", "r3"], True)
    assert await store.delete("r2", "ada")
    chain = await store.chain("r3", "ada")
    assert chain is not None
    assert ([each.id for each in chain.links], chain.is_whole) == (["r3"], False)


async def test_a_chain_ends_where_it_gets_too_long(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        await store.add(response(f"r{i}", previous_id=f"r{i - 1}" if i else None))
    whole = await store.chain("r5", "ada")
    assert whole is not None and (len(whole.links), whole.is_whole, whole.is_cut) == (6, True, False)
    assert whole.links[0].output == response("r0").body["output"]
    monkeypatch.setattr(responses_module, "MAX_CHAIN_CHARACTERS", 150)
    cut = await store.chain("r5", "ada")
    assert cut is not None and (cut.is_whole, cut.is_cut) == (False, True)
    assert 1 < len(cut.links) < 6 and cut.links[-1].id == "r5"
    monkeypatch.undo()
    monkeypatch.setattr(responses_module, "MAX_CHAIN", 2)
    cut = await store.chain("r5", "ada")
    assert cut is not None and ([each.id for each in cut.links], cut.is_cut) == (["r4", "r5"], True)
    assert await store.delete("r3", "ada")
    gone = await store.chain("r5", "ada")
    assert gone is not None and (gone.is_whole, gone.is_cut) == (False, False)


async def test_after_its_time_a_response_is_gone(store: ResponseStore, database: Database, clock: Clock) -> None:
    await store.add(running("r1", clock.now))
    await store.advance("r1", [(0, "event")], lease_expires=clock.now)
    clock.now += 999
    await store.add(response("r2"))
    assert await store.get("r1", "ada") is not None
    assert await store.delete_expired() == 0
    clock.now += 2
    assert await store.get("r1", "ada") is None
    assert await store.chain("r1", "ada") is None
    assert not await store.delete("r1", "ada")
    assert await store.delete_expired() == 1
    left = (
        (await database.read(lambda connection: connection.exec_driver_sql("SELECT id FROM responses"))).scalars().all()
    )
    counted = await database.read(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM response_events"))
    events = counted.scalar_one()
    assert (left, events) == (["r2"], 0)


async def test_what_a_response_goes_on_from_is_kept_as_long(store: ResponseStore, clock: Clock) -> None:
    await store.add(response("r1"))
    await store.add(response("r2", previous_id="r1"))
    clock.now += 900
    await store.add(response("r3", previous_id="r2"))
    clock.now += 900
    chain = await store.chain("r3", "ada")
    assert chain is not None and chain.is_whole and len(chain.links) == 3


async def test_events_are_read_from_where_one_left_off(store: ResponseStore, clock: Clock) -> None:
    await store.add(running("r1", clock.now + 30))
    await store.add(running("r2", clock.now + 30))
    assert await store.advance("r1", [(0, "zero"), (1, ODD_TEXT.replace("\x00", ""))], lease_expires=clock.now + 30)
    assert await store.advance("r1", [(2, "two")], lease_expires=clock.now + 30)
    assert await store.events("r1", -1, 10) == [(0, "zero"), (1, ODD_TEXT.replace("\x00", "")), (2, "two")]
    assert await store.events("r1", 0, 1) == [(1, ODD_TEXT.replace("\x00", ""))]
    assert await store.events("r2", -1, 10) == []
    assert (await store.last_event("r1"), await store.last_event("r2")) == (2, -1)


async def test_what_has_ended_does_not_advance(store: ResponseStore, clock: Clock) -> None:
    await store.add(running("r1", clock.now + 30))
    body = {"id": "r1", "status": "cancelled", "output": []}
    assert await store.advance("r1", body=body)
    assert not await store.advance("r1", [(0, "late")], lease_expires=clock.now + 30)
    assert not await store.advance("missing", lease_expires=clock.now + 30)
    found = await store.get("r1", "ada")
    assert found is not None and found.body == body and found.lease_expires is None
    assert await store.events("r1", -1, 10) == []


async def test_of_two_that_end_a_response_one_does(store: ResponseStore, clock: Clock) -> None:
    await store.add(running("r1", clock.now - 1))
    bodies = [{"id": "r1", "status": status, "output": []} for status in ("failed", "cancelled", "completed") * 4]
    done = await asyncio.gather(*(store.advance("r1", [(0, body["status"])], body) for body in bodies))  # type: ignore[list-item]
    assert done.count(True) == 1
    found = await store.get("r1", "ada")
    assert found is not None
    assert await store.events("r1", -1, 10) == [(0, found.body["status"])]


async def test_only_leases_that_ran_out_are_abandoned(store: ResponseStore, clock: Clock) -> None:
    await store.add(running("dead", clock.now - 1))
    await store.add(running("alive", clock.now + 1))
    await store.add(response("done"))
    assert [each.id for each in await store.abandoned(clock.now)] == ["dead"]
    # Its gateway was only slow: it comes back before anyone else has ended it.
    assert await store.advance("dead", lease_expires=clock.now + 30)
    assert not await store.advance("dead", body={"status": "failed", "output": []}, if_lease_before=clock.now)
    assert await store.abandoned(clock.now) == []


async def test_many_write_at_once(store: ResponseStore, clock: Clock) -> None:
    await asyncio.gather(*(store.add(running(f"r{i}", clock.now + 30)) for i in range(40)))

    async def work(id: str) -> None:
        for number in range(5):
            assert await store.advance(id, [(number, "text")], lease_expires=clock.now + 30)

    await asyncio.gather(*(work(f"r{i}") for i in range(40)))
    assert [await store.last_event(f"r{i}") for i in range(40)] == [4] * 40


async def test_a_restarted_server_is_reached_again(postgresql_server: postgresql.Server, clock: Clock) -> None:
    database = Database(postgresql_server.new_database("restarted"))
    await database.migrate()
    store = ResponseStore(database, 1000.0, clock)
    await store.add(response("r1"))
    await asyncio.to_thread(postgresql_server.stop)
    with pytest.raises(Unavailable):
        await store.get("r1", "ada")
    await asyncio.to_thread(postgresql_server.resume)
    assert await store.get("r1", "ada") is not None
    await database.close()
