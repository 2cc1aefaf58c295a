"""Bodies and events of the Responses API, held to the types of OpenAI's library."""

import json
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from chorus_cluster.harmony.marked_text import decode_marked
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.responses import StoredResponse

BODY: dict[str, Any] = {"model": "fake-model", "input": "Hi"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
# OpenAI sends it, and its library doesn't name it.
_UNNAMED = {"store"}


def check_known(model: object, path: str = "") -> None:
    """No field anywhere in a parsed object is one that its type doesn't have."""
    if isinstance(model, BaseModel):
        unknown = set(model.model_extra or {}) - (_UNNAMED if isinstance(model, Response) else set())
        assert not unknown, f"{path or type(model).__name__} has unknown fields: {unknown}"
        for name in type(model).model_fields:
            check_known(getattr(model, name), f"{path}.{name}")
    elif isinstance(model, list):
        for index, element in enumerate(model):
            check_known(element, f"{path}[{index}]")


def parse_response(body: Any) -> Response:
    parsed = Response.model_validate(body)
    check_known(parsed)
    return parsed


def sse(text: str) -> list[dict[str, Any]]:
    """The data of each event: named as its type says, numbered without a gap, and of a type that OpenAI has."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check_known(_EVENTS.validate_python(event), event["type"])
        events.append(event)
    first = events[0]["sequence_number"]
    assert [event["sequence_number"] for event in events] == [*range(first, first + len(events))]
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types, without "response."; of equal ones in a row, one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


async def create(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/responses", json=BODY | fields)


def prompt(engine: FakeEngineClient, index: int = -1) -> str:
    """What the model was given, from the developer's message on."""
    return decode_marked(engine.requests[index].prompt_token_ids).split("<|end|>", 1)[1]


# JSON that databases have been known to refuse or to change.
ODD_TEXT = "a\x00b \U0001f600 \u2028 'quoted' %s :name"


def stored_response(id: str, owner: str = "ada", status: str = "completed", **fields: Any) -> StoredResponse:
    body = {"id": id, "status": status, "output": [{"id": f"out_{id}", "text": ODD_TEXT}]}
    return StoredResponse(id, owner, body, [{"id": f"in_{id}"}], **fields)
