"""Responses with the clients of the package."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.chat import eventually
from tests.unit.gateway.conftest import GatewayMethods, grpc_server
from tests.unit.gateway.responses.test_grpc_responses import ask
from tests.unit.gateway.test_grpc_client import InThread

from chorus_cluster import errors
from chorus_cluster.client import AsyncChorusClient, Settings
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import responses_pb2 as pb


@pytest.fixture(params=[InThread, AsyncChorusClient])
async def client(
    request: pytest.FixtureRequest, service: ChatService, responses: ResponsesService
) -> AsyncIterator[Any]:
    methods = GatewayMethods(service, responses=responses)
    async with grpc_server(methods) as address, request.param(address, Settings(max_attempts=3)) as client:
        yield client


async def test_a_response_is_created_found_and_deleted(client: Any) -> None:
    created = await client.create_response(ask())
    assert created.output[1].message.content[0].output_text.text == "Hello there, friend."
    assert await client.get_response(created.id) == created
    page = await client.list_input_items(pb.ListInputItemsRequest(response_id=created.id))
    assert [item.message.content[0].input_text for item in page.data] == ["Hi"]
    with pytest.raises(errors.InvalidRequest):
        await client.cancel_response(created.id)
    await client.delete_response(created.id)
    with pytest.raises(errors.ResponseNotFound):
        await client.get_response(created.id)


async def test_events_are_taken_up_again(client: Any) -> None:
    events = [event async for event in client.stream_response(ask(background=True))]
    id = events[0].created.id
    assert [event async for event in client.stream_stored_response(id)] == events
    assert [event async for event in client.stream_stored_response(id, starting_after=0)] == events[1:]


async def test_a_failure_comes_after_the_event_that_tells_it(client: Any, engine: FakeEngineClient) -> None:
    engine.failure = (8, errors.RequestFailed())
    events = []
    with pytest.raises(errors.RequestFailed):
        async for event in client.stream_response(ask()):
            events.append(event)
    assert events[-1].failed.output[0].reasoning.content[0].reasoning_text == "The user greets."


async def test_closing_a_stream_ends_what_is_not_in_the_background(client: Any, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    for background in (False, True):
        events = client.stream_response(ask(background=background))
        first = await anext(events)
        await eventually(lambda: engine.num_running == 1)
        await events.aclose()
        if not background:
            await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 1
    assert (await client.cancel_response(first.created.id)).status == pb.RESPONSE_STATUS_CANCELLED
    await eventually(lambda: engine.num_aborted == 2)


async def test_what_creates_is_tried_once_and_what_reads_again(
    client: Any, engine: FakeEngineClient, responses: ResponsesService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the gateway knows the model, and the request alone is refused.
    events = [event async for event in client.stream_response(ask(background=True))]
    engine.refusal = errors.Unavailable()
    with pytest.raises(errors.Unavailable):
        await anext(client.stream_response(ask()))
    assert len(engine.requests) == 2
    get, num_asked = responses.get, 0

    async def seldom(id: str, owner: str) -> Any:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 1:
            raise errors.Unavailable("away")
        return await get(id, owner)

    monkeypatch.setattr(responses, "get", seldom)
    assert [event async for event in client.stream_stored_response(events[0].created.id)] == events
    assert num_asked == 2
