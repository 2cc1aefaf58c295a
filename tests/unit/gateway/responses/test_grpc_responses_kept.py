"""ResponsesService and /v1/responses on one store: what is kept, made in the background, ended and refused."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.support.chat import eventually
from tests.support.grpc_responses import as_json, refused, stripped
from tests.support.responses import create, prompt
from tests.unit.gateway.conftest import GatewayMethods, serve_grpc
from tests.unit.gateway.responses.test_grpc_responses import ask, said

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import new_key
from chorus_cluster.errors import Overloaded, RequestFailed
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.responses.methods import GrpcResponsesMethods
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.database import Database
from chorus_protos.v1 import responses_pb2 as pb
from chorus_protos.v1 import responses_pb2_grpc

Stub = "responses_pb2_grpc.ResponsesServiceAsyncStub"
NEVER_MADE = "resp_" + "0" * 48
COMPLETED = pb.RESPONSE_STATUS_COMPLETED


def calls(stub: Stub, id: str) -> list[Any]:
    """Every call that names a response."""
    return [
        stub.GetResponse(pb.GetResponseRequest(response_id=id)),
        stub.StreamStoredResponse(pb.StreamStoredResponseRequest(response_id=id)),
        stub.ListInputItems(pb.ListInputItemsRequest(response_id=id)),
        stub.CancelResponse(pb.CancelResponseRequest(response_id=id)),
        stub.DeleteResponse(pb.DeleteResponseRequest(response_id=id)),
    ]


async def test_either_goes_on_from_the_other_s(stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    first = await stub.CreateResponse(ask())
    second = (await create(http, previous_response_id=first.id, input="And now?")).json()
    third = await stub.CreateResponse(ask(said("And then?"), previous_response_id=second["id"]))
    assert third.previous_response_id == second["id"]
    assert prompt(engine).count("Hello there, friend.") == 2 and "And now?" in prompt(engine)
    message = first.output[1].id
    await stub.CreateResponse(ask(said("Hi"), pb.ResponseItem(item_reference=message), said("And now?")))
    assert prompt(engine) == prompt(engine, 1)
    deleted = await stub.DeleteResponse(pb.DeleteResponseRequest(response_id=first.id))
    assert (deleted.id, deleted.deleted) == (first.id, True)
    assert (await http.get(f"/v1/responses/{first.id}")).status_code == 404
    code, metadata = await refused(stub.CreateResponse(ask(previous_response_id=third.id)))
    assert (code, metadata["error-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "previous_response_id")


async def test_pages_of_input_items(stub: Stub, http: httpx.AsyncClient) -> None:
    id = (await stub.CreateResponse(ask(*(said(str(i)) for i in range(25))))).id
    path = f"/v1/responses/{id}/input_items"
    for fields, params in [
        ({}, {}),
        ({"order": pb.LIST_ORDER_ASC, "limit": 3}, {"order": "asc", "limit": "3"}),
        ({"order": pb.LIST_ORDER_DESC, "limit": 100}, {"order": "desc", "limit": "100"}),
    ]:
        page = await stub.ListInputItems(pb.ListInputItemsRequest(response_id=id, **fields))  # type: ignore[arg-type]
        assert as_json(page) == stripped((await http.get(path, params=params)).json())
        after = page.data[1].id
        page = await stub.ListInputItems(
            pb.ListInputItemsRequest(response_id=id, after=after, **fields)  # type: ignore[arg-type]
        )
        assert as_json(page) == stripped((await http.get(path, params=params | {"after": after})).json())
    wrong: list[dict[str, Any]] = [{"limit": 0}, {"limit": 101}, {"order": 9}, {"after": "missing"}]
    for fields in wrong:
        code, metadata = await refused(stub.ListInputItems(pb.ListInputItemsRequest(response_id=id, **fields)))
        assert (code, metadata["error-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, next(iter(fields)))


async def test_in_the_background(stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    created = await stub.CreateResponse(ask(background=True))
    assert created.status == pb.RESPONSE_STATUS_QUEUED and created.background and created.store
    call = stub.StreamResponse(ask(background=True))
    first = await call.read()
    assert isinstance(first, pb.ResponseEvent) and first.created.status == pb.RESPONSE_STATUS_QUEUED
    # Whoever leaves ends nothing.
    call.cancel()
    await eventually(lambda: engine.num_running == 2)
    engine.gate.set()
    id = first.created.id
    events = [event async for event in stub.StreamStoredResponse(pb.StreamStoredResponseRequest(response_id=id))]
    assert events[0] == first and events[1].WhichOneof("event") == "queued"
    assert events[-1].completed == await stub.GetResponse(pb.GetResponseRequest(response_id=id))
    assert [event.sequence_number for event in events] == [*range(len(events))]
    for after in range(len(events)):
        asked = pb.StreamStoredResponseRequest(response_id=id, starting_after=after)
        assert [event async for event in stub.StreamStoredResponse(asked)] == events[after + 1 :]
    code, metadata = await refused(
        stub.StreamStoredResponse(pb.StreamStoredResponseRequest(response_id=id, starting_after=2**31))
    )
    assert (code, metadata["error-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "starting_after")
    # The other was not made to be streamed.
    asked = pb.StreamStoredResponseRequest(response_id=created.id)
    assert (await refused(stub.StreamStoredResponse(asked)))[1]["error-field"] == "stream"
    assert (await http.get(f"/v1/responses/{id}")).json()["status"] == "completed"
    assert engine.num_aborted == 0


async def test_cancel(stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    call = stub.StreamResponse(ask(background=True))
    streamed = aiter(call)
    first = await anext(streamed)
    await eventually(lambda: engine.num_running == 1)
    cancelled = await stub.CancelResponse(pb.CancelResponseRequest(response_id=first.created.id))
    assert cancelled.status == pb.RESPONSE_STATUS_CANCELLED
    await eventually(lambda: engine.num_aborted == 1)
    assert as_json(cancelled) == stripped((await http.get(f"/v1/responses/{cancelled.id}")).json())
    # Its stream ends without a last event, and well.
    rest = [event async for event in streamed]
    assert not [event for event in rest if event.HasField("failed")] and await call.code() == grpc.StatusCode.OK
    engine.gate.set()
    whole = await stub.CreateResponse(ask())
    code, _ = await refused(stub.CancelResponse(pb.CancelResponseRequest(response_id=whole.id)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("id", ["", "resp_x", "\x00", "a" * 5000, NEVER_MADE])
async def test_what_is_no_id_is_not_found(stub: Stub, id: str) -> None:
    for call in calls(stub, id):
        code, metadata = await refused(call)
        assert (code, metadata["error-code"]) == (grpc.StatusCode.NOT_FOUND, "response_not_found")


async def test_an_owner_sees_his_own(service: ChatService, responses: ResponsesService, tmp_path: Path) -> None:
    entries, metadata = "keys:\n", {}
    for owner in ("ada", "bob"):
        key, entry = new_key(f"{owner}-key", owner)
        entries += entry
        metadata[owner] = (("authorization", f"Bearer {key}"),)
    file = tmp_path / "keys.yaml"
    file.write_text(entries)
    methods = GatewayMethods(service, responses=responses, access=Access(KeyFile(file)))
    async with serve_grpc(methods) as channel:
        stub: Any = responses_pb2_grpc.ResponsesServiceStub(channel)
        id = (await stub.CreateResponse(ask(), metadata=metadata["ada"])).id
        for call in calls(stub, id):
            assert (await refused(call))[0] == grpc.StatusCode.UNAUTHENTICATED
        bob = {"metadata": metadata["bob"]}
        for name, asked in [
            ("GetResponse", pb.GetResponseRequest(response_id=id)),
            ("StreamStoredResponse", pb.StreamStoredResponseRequest(response_id=id)),
            ("ListInputItems", pb.ListInputItemsRequest(response_id=id)),
            ("CancelResponse", pb.CancelResponseRequest(response_id=id)),
            ("DeleteResponse", pb.DeleteResponseRequest(response_id=id)),
            ("CreateResponse", ask(previous_response_id=id)),
            ("StreamResponse", ask(previous_response_id=id)),
        ]:
            code, told = await refused(getattr(stub, name)(asked, **bob))
            assert (code, told["error-code"]) == (grpc.StatusCode.NOT_FOUND, "response_not_found")
        assert (await stub.GetResponse(pb.GetResponseRequest(response_id=id), metadata=metadata["ada"])).id == id


async def test_a_failure_is_the_last_event_and_the_status(stub: Stub, engine: FakeEngineClient) -> None:
    engine.failure = (9, RequestFailed())
    events = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for event in stub.StreamResponse(ask()):
            events.append(event)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    failed = events[-1].failed
    assert failed.error.code == pb.RESPONSE_ERROR_CODE_SERVER_ERROR and failed.output
    assert failed.error.message == caught.value.details()
    assert (await refused(stub.GetResponse(pb.GetResponseRequest(response_id=failed.id))))[
        0
    ] == grpc.StatusCode.NOT_FOUND
    assert (await refused(stub.CreateResponse(ask())))[0] == grpc.StatusCode.INTERNAL
    # In the background, the failure is the response's alone.
    events = [event async for event in stub.StreamResponse(ask(background=True))]
    assert events[-1].failed.error == failed.error


async def test_unknown_errors_are_not_shown(stub: Stub, engine: FakeEngineClient) -> None:
    engine.failure = (9, ZeroDivisionError("secret"))  # type: ignore[assignment]
    events = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for event in stub.StreamResponse(ask()):
            events.append(event)
    assert dict(caught.value.trailing_metadata() or ())["error-code"] == "internal_error"
    assert events[-1].HasField("failed") and "secret" not in str(events) + str(caught.value)


@pytest.mark.parametrize("method", ["CreateResponse", "StreamResponse"])
async def test_a_refusal_is_the_status(stub: Stub, engine: FakeEngineClient, method: str) -> None:
    await stub.CreateResponse(ask())
    engine.refusal = Overloaded(3)
    code, metadata = await refused(getattr(stub, method)(ask()))
    assert (code, metadata["retry-after"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "3")


@pytest.mark.parametrize("method", ["CreateResponse", "StreamResponse"])
async def test_a_client_that_leaves_ends_it_and_nothing_is_kept(
    stub: Stub, engine: FakeEngineClient, service: ChatService, database: Database, method: str
) -> None:
    engine.gate = asyncio.Event()
    call = getattr(stub, method)(ask())
    await eventually(lambda: engine.num_running == 1)
    call.cancel()
    await eventually(lambda: engine.num_aborted == 1)
    count = {"route": f"/chorus.v1.ResponsesService/{method}", "status": "CANCELLED"}
    await eventually(lambda: service.metrics.registry.get_sample_value("chorus_gateway_requests_total", count) == 1)
    rows = await database.read(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM responses"))
    assert rows.scalar_one() == 0


async def test_deadlines_reach_the_engine(stub: Stub, engine: FakeEngineClient) -> None:
    await stub.CreateResponse(ask(), timeout=50)
    await stub.StreamResponse(ask(), metadata=(("x-request-timeout-s", "50"),)).read()
    deadlines = [request.deadline_unix_s for request in engine.requests]
    assert len(deadlines) == 2 and all(40 < deadline - time.time() < 51 for deadline in deadlines)
    code, metadata = await refused(stub.CreateResponse(ask(), metadata=(("x-request-timeout-s", "soon"),)))
    assert (code, metadata["error-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "x-request-timeout-s")


async def test_malformed_messages(grpc_channel: grpc.aio.Channel) -> None:
    for method in ("CreateResponse", "GetResponse", "DeleteResponse", "CancelResponse", "ListInputItems"):
        call = grpc_channel.unary_unary(f"/chorus.v1.ResponsesService/{method}")
        assert (await refused(call(b"\xff\xff\xff")))[0] == grpc.StatusCode.INVALID_ARGUMENT
    for method in ("StreamResponse", "StreamStoredResponse"):
        call = grpc_channel.unary_stream(f"/chorus.v1.ResponsesService/{method}")
        assert (await refused(call(b"\xff\xff\xff")))[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gateway_without_a_store(service: ChatService) -> None:
    async with serve_grpc(GatewayMethods(service)) as channel:
        stub: Any = responses_pb2_grpc.ResponsesServiceStub(channel)
        created = await stub.CreateResponse(ask())
        assert created.status == COMPLETED and not created.store
        for field, value in {"store": True, "background": True, "previous_response_id": "resp_x"}.items():
            assert (await refused(stub.CreateResponse(ask(**{field: value}))))[1]["error-field"] == field
        for call in calls(stub, created.id):
            assert (await refused(call))[0] == grpc.StatusCode.NOT_FOUND


async def test_what_fails_is_raised_behind_serves_own_proxy(
    service: ChatService, responses: ResponsesService, engine: FakeEngineClient
) -> None:
    class Context:
        code: grpc.StatusCode | None = None

        def invocation_metadata(self) -> list[tuple[str, str]]:
            return []

        def set_code(self, code: grpc.StatusCode) -> None:
            self.code = code

        def set_details(self, details: str) -> None:
            pass

        def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
            pass

    engine.failure = (9, RequestFailed())
    context = Context()
    methods = GrpcResponsesMethods(service, responses=responses, raises_in_streams=True)
    events = []
    with pytest.raises(RequestFailed):
        async for event in methods.StreamResponse(ask(), context):
            events.append(event)
    assert events[-1].HasField("failed") and context.code == grpc.StatusCode.INTERNAL
