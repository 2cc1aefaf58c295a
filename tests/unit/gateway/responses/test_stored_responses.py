"""What is kept: previous responses, get, delete, input items, and whose they are."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseItemList
from tests.support.chat import TOOL_CALL, encode, eventually
from tests.support.responses import WEATHER, check_known, create, parse_response, prompt, sse

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import new_key
from chorus_cluster.errors import Unavailable
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore


async def test_a_response_goes_on_from_the_previous_one(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    first = sse((await create(http, instructions="Be brief.", stream=True)).text)[-1]["response"]
    second = (await create(http, previous_response_id=first["id"], input="And now?")).json()
    assert parse_response(second).previous_response_id == first["id"]
    # The instructions are not handed on, nor is reasoning that an answer has followed.
    assert prompt(engine) == (
        "<|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello there, friend.<|end|>"
        "<|start|>user<|message|>And now?<|end|><|start|>assistant"
    )
    await create(http, previous_response_id=second["id"], input="And then?", instructions="Be long.")
    assert prompt(engine).count("Hello there, friend.") == 2
    assert prompt(engine).startswith("<|start|>developer<|message|># Instructions\n\nBe long.")


async def test_items_are_referred_to(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    """As clients do that keep ids alone."""
    engine.script = encode(TOOL_CALL)
    first = (await create(http, tools=[WEATHER])).json()
    question = {"role": "user", "content": "Hi"}
    result = {"type": "function_call_output", "call_id": first["output"][1]["call_id"], "output": "Rain."}
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    await create(http, tools=[WEATHER], input=[question, *first["output"], result])
    second = (await create(http, tools=[WEATHER], input=[question, *references, result])).json()
    assert prompt(engine, 1) == prompt(engine, 2)
    page = (await http.get(f"/v1/responses/{second['id']}/input_items?order=asc")).json()
    assert page["data"][1:3] == [{"status": "completed", **item} for item in first["output"]]
    later = await create(http, tools=[WEATHER], input=[question, *references, result], background=True)
    assert later.status_code == 200
    await http.delete(f"/v1/responses/{first['id']}")
    gone = await create(http, input=[question, *references])
    assert (gone.status_code, gone.json()["error"]["param"]) == (400, "input[1].id")


async def test_get_and_delete(http: httpx.AsyncClient) -> None:
    created = (await create(http)).json()
    assert created["store"] is True
    path = f"/v1/responses/{created['id']}"
    assert (await http.get(path)).json() == created
    assert (await http.delete(path)).json() == {"id": created["id"], "object": "response", "deleted": True}
    for answer in (await http.get(path), await http.delete(path), await http.get(f"{path}/input_items")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "response_not_found"
    assert (await create(http, previous_response_id=created["id"])).status_code == 404


async def test_without_store_nothing_is_kept(http: httpx.AsyncClient) -> None:
    created = (await create(http, store=False)).json()
    assert created["store"] is False
    assert (await http.get(f"/v1/responses/{created['id']}")).status_code == 404


async def test_a_client_that_leaves_ends_it_and_nothing_is_kept(
    server_url: str, engine: FakeEngineClient, database: Database
) -> None:
    engine.gate = asyncio.Event()
    body = {"model": "fake-model", "input": "Hi", "stream": True}
    async with httpx.AsyncClient() as client, client.stream("POST", f"{server_url}/v1/responses", json=body) as answer:
        async for text in answer.aiter_text():
            if "response.in_progress" in text:
                break
    await eventually(lambda: engine.num_aborted == 1)
    rows = await database.read(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM responses"))
    assert rows.scalar_one() == 0


async def test_what_goes_on_from_a_deleted_response_does_not_go_on(http: httpx.AsyncClient) -> None:
    first = (await create(http)).json()
    second = (await create(http, previous_response_id=first["id"])).json()
    await http.delete(f"/v1/responses/{first['id']}")
    answer = await create(http, previous_response_id=second["id"])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "previous_response_id"
    assert (await http.get(f"/v1/responses/{second['id']}")).status_code == 200


async def test_input_items(http: httpx.AsyncClient) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_mine"}
    custom = {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"}
    results: list[dict[str, Any]] = [
        {"type": "function_call_output", "call_id": "c1", "output": "y"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "z"},
    ]
    question = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    first = (await create(http, input=[question, call, custom, *results])).json()
    second = (await create(http, input="And?", previous_response_id=first["id"])).json()
    path = f"/v1/responses/{second['id']}/input_items"
    page = (await http.get(path, params={"order": "asc"})).json()
    check_known(ResponseItemList.model_validate(page))
    found = [item["type"] for item in page["data"]]
    kinds = ["message", "function_call", "custom_tool_call", "function_call_output", "custom_tool_call_output"]
    # What the model was given: the previous response's input and output, then the new input.
    assert found == [*kinds, "reasoning", "message", "message"]
    assert page["data"][1]["id"] == "fc_mine" and page["data"][0]["content"] == question["content"]
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    assert page["has_more"] is False
    ids: list[str] = []
    while True:
        params = {"limit": 3} | ({"after": ids[-1]} if ids else {})
        part = (await http.get(path, params=params)).json()
        ids += [item["id"] for item in part["data"]]
        if not part["has_more"]:
            break
    assert ids == [item["id"] for item in page["data"]][::-1]


async def test_truncation_drops_the_oldest(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    items: list[dict[str, Any]] = []
    for i in range(8):
        items += [
            {"role": "user", "content": f"question {i} " + "word " * 200},
            {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{i}", "output": f"result {i} " + "word " * 400},
        ]
    items.append({"role": "user", "content": "last"})
    fields: dict[str, Any] = {"input": items, "instructions": "Be brief."}
    refused = await create(http, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    answer = await create(http, **fields, truncation="auto", max_output_tokens=500)
    assert answer.status_code == 200 and answer.json()["truncation"] == "auto"
    given = prompt(engine)
    assert "Be brief." in given and "question 7" in given and given.count("last") == 1
    kept = [i for i in range(8) if f"question {i}" in given or f"result {i}" in given]
    assert 3 <= len(kept) < 8 and kept == list(range(8 - len(kept), 8))
    assert len(engine.requests[-1].prompt_token_ids) + 500 <= engine.max_model_len
    # Nothing can be left out of the last message.
    alone = await create(http, input="word " * 5000, truncation="auto")
    assert (alone.status_code, alone.json()["error"]["param"]) == (400, "input")


async def test_an_owner_sees_his_own(
    service: ChatService, responses: ResponsesService, tmp_path: Path, engine: FakeEngineClient
) -> None:
    entries, headers = "keys:\n", {}
    for owner in ("ada", "bob"):
        key, entry = new_key(f"{owner}-key", owner)
        entries += entry
        headers[owner] = {"authorization": f"Bearer {key}"}
    file = tmp_path / "keys.yaml"
    file.write_text(entries)
    app = build_http_app(service, responses=responses, access=Access(KeyFile(file)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
        body = {"model": "fake-model", "input": "Hi"}
        id = (await http.post("/v1/responses", json=body, headers=headers["ada"])).json()["id"]
        later = body | {"background": True, "stream": True}
        running = sse((await http.post("/v1/responses", json=later, headers=headers["ada"])).text)[0]["response"]["id"]
        for each in (id, running):
            path = f"/v1/responses/{each}"
            for method, url in [
                ("GET", path),
                ("GET", f"{path}?stream=true"),
                ("GET", f"{path}/input_items"),
                ("POST", f"{path}/cancel"),
                ("DELETE", path),
            ]:
                assert (await http.request(method, url)).status_code == 401
                assert (await http.request(method, url, headers=headers["bob"])).status_code == 404
            item = {"type": "item_reference", "id": f"msg_{each.removeprefix('resp_')}0001"}
            assert (await http.post("/v1/responses", json=body | {"input": [item]}, headers=headers["ada"])).is_success
            assert (await http.post("/v1/responses", json=body | {"input": [item]}, headers=headers["bob"])).is_error
            goes_on = body | {"previous_response_id": each}
            assert (await http.post("/v1/responses", json=goes_on, headers=headers["bob"])).status_code == 404
            assert (await http.get(path, headers=headers["ada"])).status_code == 200
    assert {request.cache_salt for request in engine.requests} == {"ada"}


async def test_a_gateway_without_a_store(service: ChatService) -> None:
    app = build_http_app(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
        created = (await create(http)).json()
        assert created["store"] is False
        for fields in ({"store": True}, {"background": True}, {"previous_response_id": "resp_x"}):
            answer = await create(http, **fields)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(fields)))
        path = f"/v1/responses/{created['id']}"
        for method, url in [
            ("GET", path),
            ("GET", f"{path}/input_items"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
        ]:
            assert (await http.request(method, url)).status_code == 404


async def test_a_store_that_fails_is_told(
    http: httpx.AsyncClient, database: Database, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = (await create(http)).json()
    for statement in ("DROP TABLE response_events", "ALTER TABLE responses RENAME TO gone"):
        await database.write(lambda connection, statement=statement: connection.exec_driver_sql(statement))  # type: ignore[misc]
    for answer in (await create(http), await http.get(f"/v1/responses/{created['id']}")):
        assert answer.status_code == Unavailable.http_status
        assert "responses does not answer" in answer.json()["error"]["message"]
    events = sse((await create(http, stream=True)).text)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"] == "The store of responses does not answer."
