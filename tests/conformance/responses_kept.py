"""/v1/responses/{id} and its input items: their query parameters, which are shown on a gateway with a store."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from openai.types.responses.input_item_list_params import InputItemListParams
from openai.types.responses.response_retrieve_params import (
    ResponseRetrieveParamsNonStreaming,
    ResponseRetrieveParamsStreaming,
)
from tests.conformance.responses_door import Keeper, keeper
from tests.conformance.rows import Api, Row, read_events

STREAMED = "of one that was created with `background` and `stream`"
FOUR = [{"role": "user", "content": text} for text in ("one", "two", "three", "four")]


async def _get(kept: Keeper, id: str, rest: str = "", **query: Any) -> httpx.Response:
    response = await kept.http.get(f"/v1/responses/{id}{rest}", params=query)
    assert response.status_code == 200, response.text
    return response


async def stream() -> bool:
    async with keeper() as kept:
        events = await kept.stream(background=True)
        again, _ = read_events((await _get(kept, events[0]["response"]["id"], stream="true")).text)
        whole = await kept.http.get(f"/v1/responses/{(await kept.create())['id']}?stream=true")
    return again == events and whole.status_code == 400


async def starting_after() -> bool:
    async with keeper() as kept:
        events = await kept.stream(background=True)
        id = events[0]["response"]["id"]
        rest, _ = read_events((await _get(kept, id, stream="true", starting_after=4)).text)
    return rest == events[5:]


async def listed(**query: Any) -> list[str]:
    """The texts on one page."""
    async with keeper() as kept:
        id = (await kept.create(input=FOUR))["id"]
        items = (await _get(kept, id, "/input_items", order="asc")).json()["data"]
        if "after" in query:
            query["after"] = items[query["after"]]["id"]
        page = (await _get(kept, id, "/input_items", **query)).json()
    assert page["has_more"] == (len(page["data"]) == query.get("limit"))
    return [item["content"][0]["text"] for item in page["data"]]


async def order() -> bool:
    ascending = [item["content"] for item in FOUR]
    return [await listed(order=each) for each in ("asc", "desc")] == [ascending, ascending[::-1]]


async def limit() -> bool:
    return await listed(limit=3) == ["four", "three", "two"]


async def after() -> bool:
    return await listed(after=1, order="asc") == ["three", "four"] and await listed(after=1) == ["one"]


def _supported(name: str, shown_by: Callable[[], Awaitable[bool]], note: str = "", values: str = "") -> Row:
    async def show() -> None:
        assert await shown_by()

    return Row(name, "supported", show, values, note)


def _ignored(name: str, value: str, note: str, rest: str = "") -> Row:
    async def show() -> None:
        async with keeper() as kept:
            id = (await kept.stream(background=True))[0]["response"]["id"]
            for query in ({}, {"stream": "true"}):
                plain, changed = [await _get(kept, id, rest, **query, **each) for each in ({}, {name: value})]
                assert plain.text == changed.text

    return Row(name, "ignored", show, "", note)


RETRIEVE = Api(
    "/v1/responses/{id}",
    [
        _supported("stream", stream, STREAMED),
        _supported("starting_after", starting_after, "the number of the last event that is known"),
        _ignored("include", "message.output_text.logprobs", "a response is kept as it was asked for"),
        _ignored("include_obfuscation", "true", "nothing is added to events"),
    ],
    frozenset(ResponseRetrieveParamsNonStreaming.__annotations__)
    | frozenset(ResponseRetrieveParamsStreaming.__annotations__),
)
INPUT_ITEMS = Api(
    "/v1/responses/{id}/input_items",
    [
        _supported("after", after, "an item's id"),
        _supported("limit", limit),
        _supported("order", order, "`desc` by default", "`asc`, `desc`"),
        _ignored("include", "message.input_image.image_url", "there are no such items", "/input_items"),
    ],
    frozenset(InputItemListParams.__annotations__),
)
