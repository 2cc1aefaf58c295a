"""Bad input that refers to what is stored: ids that none can be, that none has, or that are another owner's; and pages.

What is wrong with a body by itself stands in the one table, `tests/unit/gateway/test_bad_input.py`.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tests.support.client_texts import assert_tells_nothing_of_the_inside
from tests.support.responses import BODY

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import new_key
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.responses.ids import output_item_id
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.routing.fake_client import FakeEngineClient

# None can be the first; the last could be, and nobody has it.
IDS = ["x", "resp_x", "RESP_" + "0" * 48, "\x00", "%s", "\u2028", "a" * 5000, "resp_" + "0" * 48]
ROUTES = [
    ("GET", ""),
    ("GET", "?stream=true"),
    ("GET", "?stream=true&starting_after=3"),
    ("GET", "/input_items"),
    ("POST", "/cancel"),
    ("DELETE", ""),
]


@pytest.fixture
async def clients(
    service: ChatService, responses: ResponsesService, tmp_path: Path
) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Of two owners, at one gateway."""
    entries, keys = "keys:\n", {}
    for owner in ("ada", "bob"):
        keys[owner], entry = new_key(f"{owner}-key", owner)
        entries += entry
    file = tmp_path / "keys.yaml"
    file.write_text(entries)
    transport = httpx.ASGITransport(app=build_http_app(service, responses=responses, access=Access(KeyFile(file))))

    def client(owner: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {keys[owner]}"}
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)

    async with client("ada") as ada, client("bob") as bob:
        yield {"ada": ada, "bob": bob}


async def create(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/v1/responses", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def check(answer: httpx.Response, param: str | None, says: str, status: int = 404) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert error["code"] == ("response_not_found" if status == 404 else "invalid_value")
    assert says in error["message"] and len(error["message"]) < 500
    assert_tells_nothing_of_the_inside(error["message"])


@pytest.mark.parametrize("id", IDS, ids=lambda id: ascii(id)[:20])
async def test_ids_that_no_response_has(http: httpx.AsyncClient, engine: FakeEngineClient, id: str) -> None:
    for method, rest in ROUTES:
        check(await http.request(method, f"/v1/responses/{quote(id)}{rest}"), None, "does not exist here")
    for fields in ({}, {"stream": True}, {"background": True}):
        answer = await http.post("/v1/responses", json=BODY | fields | {"previous_response_id": id})
        check(answer, "previous_response_id", "does not exist here")
        answer = await http.post(
            "/v1/responses", json=BODY | fields | {"input": [{"type": "item_reference", "id": id}]}
        )
        check(answer, "input[0].id", "no item in the output", status=400)
    assert engine.requests == []


@pytest.mark.parametrize(("method", "rest"), ROUTES)
async def test_another_owners_response(clients: dict[str, httpx.AsyncClient], method: str, rest: str) -> None:
    """It is as if there were none: nothing tells an id that is another's from one that is nobody's."""
    nobodys = "resp_" + "0" * 48
    for fields in ({}, {"background": True}):
        id = (await create(clients["ada"], **fields))["id"]
        answer = await clients["bob"].request(method, f"/v1/responses/{id}{rest}")
        check(answer, None, "does not exist here")
        other = await clients["bob"].request(method, f"/v1/responses/{nobodys}{rest}")
        assert other.json() == {"error": answer.json()["error"] | {"message": other.json()["error"]["message"]}}
        assert other.json()["error"]["message"] == answer.json()["error"]["message"].replace(id, nobodys)
        assert (await clients["ada"].get(f"/v1/responses/{id}")).json()["status"] != "cancelled"


async def test_going_on_from_what_is_another_owners(
    clients: dict[str, httpx.AsyncClient], engine: FakeEngineClient
) -> None:
    first = await create(clients["ada"])
    reference = {"type": "item_reference", "id": first["output"][-1]["id"]}
    for fields in ({}, {"stream": True}, {"background": True}):
        body = BODY | fields
        answer = await clients["bob"].post("/v1/responses", json=body | {"previous_response_id": first["id"]})
        check(answer, "previous_response_id", "does not exist here")
        answer = await clients["bob"].post("/v1/responses", json=body | {"input": [reference]})
        check(answer, "input[0].id", "no item in the output", status=400)
    assert len(engine.requests) == 1
    await create(clients["ada"], previous_response_id=first["id"], input=[reference])


async def test_references_to_items_that_a_response_does_not_have(http: httpx.AsyncClient) -> None:
    first = await create(http)
    for id in (output_item_id("message", first["id"], 7), output_item_id("reasoning", first["id"], 1), first["id"]):
        items = [{"role": "user", "content": "Hi"}, {"type": "item_reference", "id": id}]
        answer = await http.post("/v1/responses", json=BODY | {"input": items})
        check(answer, "input[1].id", "no item in the output", status=400)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        *((f"limit={text}", "from 1 to 100") for text in ("0", "101", "-1", "x", "1.5", "", "%D9%A1", "9" * 5000)),
        *((f"order={text}", "'asc' or 'desc'") for text in ("", "up", "ASC")),
        *((f"after={text}", "no item of this response") for text in ("", "msg_1", "%00", "a" * 5000)),
    ],
    ids=lambda text: text[:30],
)
async def test_pages_of_input_items(http: httpx.AsyncClient, query: str, says: str) -> None:
    id = (await create(http))["id"]
    check(await http.get(f"/v1/responses/{id}/input_items?{query}"), query.partition("=")[0], says, status=400)


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "", "2147483648", "9" * 5000], ids=lambda text: text[:20])
async def test_where_a_stream_is_taken_up(http: httpx.AsyncClient, text: str) -> None:
    id = (await create(http, background=True))["id"]
    answer = await http.get(f"/v1/responses/{id}?stream=true&starting_after={text}")
    check(answer, "starting_after", "from 0 to", status=400)


async def test_what_was_not_made_in_the_background(http: httpx.AsyncClient) -> None:
    path = f"/v1/responses/{(await create(http))['id']}"
    check(await http.get(f"{path}?stream=true"), "stream", "'background' and 'stream'", status=400)
    check(await http.post(f"{path}/cancel"), None, "'background': true", status=400)
