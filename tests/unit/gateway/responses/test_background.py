"""Responses in the background: polled, streamed again, cancelled, and left behind by their gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.support.chat import eventually
from tests.support.clock import Clock
from tests.support.responses import create, kinds, parse_response, sse

from chorus_cluster.errors import Overloaded, RequestFailed
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.responses import background
from chorus_cluster.gateway.responses.background import LEASE_S
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """Both kinds."""
    database = Database(store_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def gate(engine: FakeEngineClient) -> asyncio.Event:
    """While it is cleared, the model writes no further than its first token."""
    engine.gate = asyncio.Event()
    return engine.gate


@pytest.fixture
async def other(service: ChatService, store: ResponseStore) -> AsyncIterator[httpx.AsyncClient]:
    """Another gateway on the same store."""
    responses = ResponsesService(service, store)
    transport = httpx.ASGITransport(app=build_http_app(service, responses=responses))
    async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
        yield client


async def ended(http: httpx.AsyncClient, id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            body: dict[str, Any] = (await http.get(f"/v1/responses/{id}")).json()
            if body["status"] not in ("queued", "in_progress"):
                return body
            await asyncio.sleep(0.01)


async def test_it_is_polled(http: httpx.AsyncClient, other: httpx.AsyncClient, gate: asyncio.Event) -> None:
    answer = await create(http, background=True)
    assert answer.status_code == 200
    created = parse_response(answer.json())
    assert created.status == "queued" and created.background and created.output == []
    async with asyncio.timeout(5):
        while (await other.get(f"/v1/responses/{created.id}")).json()["status"] != "in_progress":
            await asyncio.sleep(0.01)
    gate.set()
    whole = parse_response(await ended(other, created.id))
    assert whole.status == "completed" and whole.output_text == "Hello there, friend."
    # It can be gone on from, and was not made to be streamed.
    assert (await create(http, previous_response_id=whole.id)).status_code == 200
    streamed = await other.get(f"/v1/responses/{whole.id}?stream=true")
    assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "stream")


async def test_its_stream_is_taken_up_by_another_gateway(
    http: httpx.AsyncClient, other: httpx.AsyncClient, gate: asyncio.Event
) -> None:
    gate.set()
    events = sse((await create(http, background=True, stream=True)).text)
    assert kinds(events)[:3] == ["created", "queued", "in_progress"] and kinds(events)[-1] == "completed"
    assert events[0]["response"]["status"] == "queued"
    id = events[0]["response"]["id"]
    for after in range(len(events) - 1):
        again = await other.get(f"/v1/responses/{id}", params={"stream": "true", "starting_after": after})
        assert sse(again.text) == events[after + 1 :]
    assert (await other.get(f"/v1/responses/{id}?stream=true&starting_after=99999")).text == ""
    bad = await other.get(f"/v1/responses/{id}?stream=true&starting_after=x")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "starting_after")
    assert (await http.get(f"/v1/responses/{id}")).json() == events[-1]["response"]


async def test_a_client_that_leaves_does_not_end_it(
    server_url: str, http: httpx.AsyncClient, engine: FakeEngineClient, gate: asyncio.Event
) -> None:
    seen = ""
    body = {"model": "fake-model", "input": "Hi", "background": True, "stream": True}
    async with httpx.AsyncClient() as client, client.stream("POST", f"{server_url}/v1/responses", json=body) as answer:
        async for text in answer.aiter_text():
            seen += text
            if "response.in_progress" in seen:
                break
    gate.set()
    first = sse(seen[: seen.rindex("\n\n") + 2])
    id = first[0]["response"]["id"]
    assert (await ended(http, id))["status"] == "completed"
    last = first[-1]["sequence_number"]
    rest = sse((await http.get(f"/v1/responses/{id}?stream=true&starting_after={last}")).text)
    assert [event["sequence_number"] for event in rest][0] == last + 1
    assert rest[-1]["type"] == "response.completed"
    assert engine.num_aborted == 0


async def test_another_gateway_cancels_it(
    http: httpx.AsyncClient, other: httpx.AsyncClient, engine: FakeEngineClient, gate: asyncio.Event
) -> None:
    id = (await create(http, background=True)).json()["id"]
    await eventually(lambda: engine.num_running == 1)
    cancelled = await other.post(f"/v1/responses/{id}/cancel")
    assert parse_response(cancelled.json()).status == "cancelled"
    await eventually(lambda: engine.num_aborted == 1)
    assert (await http.get(f"/v1/responses/{id}")).json() == cancelled.json()
    assert (await other.post(f"/v1/responses/{id}/cancel")).json() == cancelled.json()


async def test_its_own_gateway_cancels_it_at_once(
    http: httpx.AsyncClient, engine: FakeEngineClient, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_HEARTBEAT_S", 1000.0)
    id = (await create(http, background=True)).json()["id"]
    await eventually(lambda: engine.num_running == 1)
    assert (await http.post(f"/v1/responses/{id}/cancel")).json()["status"] == "cancelled"
    await eventually(lambda: engine.num_aborted == 1)


async def test_only_what_runs_in_the_background_is_cancelled(http: httpx.AsyncClient) -> None:
    whole = (await create(http)).json()
    assert (await http.post(f"/v1/responses/{whole['id']}/cancel")).status_code == 400
    later = (await create(http, background=True)).json()
    body = await ended(http, later["id"])
    assert (await http.post(f"/v1/responses/{later['id']}/cancel")).json() == body


async def test_a_deleted_response_ends(
    http: httpx.AsyncClient, other: httpx.AsyncClient, engine: FakeEngineClient, gate: asyncio.Event
) -> None:
    id = (await create(http, background=True)).json()["id"]
    await eventually(lambda: engine.num_running == 1)
    assert (await create(http, previous_response_id=id)).status_code == 400
    assert (await other.delete(f"/v1/responses/{id}")).status_code == 200
    await eventually(lambda: engine.num_aborted == 1)
    assert (await http.get(f"/v1/responses/{id}")).status_code == 404


async def test_a_wrong_request_is_refused_at_once(http: httpx.AsyncClient) -> None:
    for fields in ({"input": "word " * 9000}, {"temperature": 5}, {"max_output_tokens": 5000}):
        answer = await create(http, background=True, **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(fields)))


async def test_it_waits_for_full_workers(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await create(http)
    engine.refusal = Overloaded(0.01)
    id = (await create(http, background=True)).json()["id"]
    await eventually(lambda: len(engine.requests) > 3)
    assert (await http.get(f"/v1/responses/{id}")).json()["status"] == "queued"
    engine.refusal = None
    assert (await ended(http, id))["status"] == "completed"
    engine.refusal = Overloaded(0.01)
    late = await http.post(
        "/v1/responses",
        json={"model": "fake-model", "input": "Hi", "background": True},
        headers={"x-request-timeout-s": "0.2"},
    )
    failed = parse_response(await ended(http, late.json()["id"]))
    assert failed.status == "failed" and failed.error is not None and failed.error.code == "rate_limit_exceeded"


async def test_a_failure_is_found(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.failure = (9, RequestFailed())
    events = sse((await create(http, background=True, stream=True)).text)
    assert events[-1]["type"] == "response.failed"
    body = (await http.get(f"/v1/responses/{events[-1]['response']['id']}")).json()
    assert body == events[-1]["response"]
    assert parse_response(body).error is not None


async def test_what_a_dead_gateway_left_is_ended_by_another(
    service: ChatService, store: ResponseStore, engine: FakeEngineClient, gate: asyncio.Event
) -> None:
    clock = Clock()
    dead, alive = (ResponsesService(service, store, clock=clock) for _ in range(2))
    assert dead.jobs is not None and alive.jobs is not None
    transport = httpx.ASGITransport(app=build_http_app(service, responses=dead))
    async with httpx.AsyncClient(transport=transport, base_url="http://dead") as http:
        id = (await create(http, background=True, stream=False)).json()["id"]
        stream = asyncio.create_task(create(http, background=True, stream=True))
        await eventually(lambda: engine.num_running == 2)
        (streamed,) = [job for job in dead.jobs._tasks if job != id]
        while await store.last_event(streamed) < 2:
            await asyncio.sleep(0.01)
        clock.now += LEASE_S - 1
        assert await alive.jobs.end_abandoned() == 0
        await dead.jobs.close()
        clock.now += LEASE_S + 1
        assert await alive.jobs.end_abandoned() == 2
        assert await alive.jobs.end_abandoned() == 0
        events = sse((await stream).text)
    assert events[-1]["type"] == "response.failed"
    found = await alive.get(id, "")
    assert parse_response(found.body).status == "failed"
    assert "send it again" in found.body["error"]["message"]


async def test_a_gateway_has_so_many_at_once(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MAX_JOBS", 0)
    assert (await create(http, background=True)).status_code == 429


async def test_a_store_that_comes_back_has_all(
    http: httpx.AsyncClient,
    store: ResponseStore,
    engine: FakeEngineClient,
    gate: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "_HEARTBEAT_S", 0.01)
    advance, failures = store.advance, 0

    async def failing(*args: Any, **kwargs: Any) -> bool:
        nonlocal failures
        failures += 1
        if failures <= 5:
            raise background.Unavailable("away")
        return await advance(*args, **kwargs)

    monkeypatch.setattr(store, "advance", failing)
    gate.set()
    events = sse((await create(http, background=True, stream=True)).text)
    assert failures > 5 and events[0]["sequence_number"] == 0 and events[-1]["type"] == "response.completed"
