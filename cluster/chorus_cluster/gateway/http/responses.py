"""The routes of /v1/responses."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.responses import Response

from chorus_cluster.gateway.http.access import OWNER
from chorus_cluster.gateway.http.io import json_response, read_body
from chorus_cluster.gateway.http.response_events import ResponseAnswer, StoredEvents
from chorus_cluster.gateway.openai.parse import parse_json
from chorus_cluster.gateway.responses import models as wire
from chorus_cluster.gateway.responses.items import Item
from chorus_cluster.gateway.responses.listing import DEFAULT_LISTED, MAX_LISTED, check_number, page_of
from chorus_cluster.gateway.responses.parse import parse_response_body
from chorus_cluster.gateway.responses.service import MAX_SEQUENCE_NUMBER, ResponsesService

_PATH: Final = "/v1/responses/{response_id}"
Responses = dict[int | str, dict[str, Any]]

_EVENTS: Final = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "description": "With `stream`: OpenAI's typed events, in order.",
            "properties": {
                "event": {"type": "string"},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {
                        "type": "object",
                        "properties": {
                            "type": {"type": "string"},
                            "sequence_number": {"type": "integer", "minimum": 0},
                        },
                        "required": ["type", "sequence_number"],
                    },
                },
            },
            "required": ["event", "data"],
        }
    }
}
_STREAM: Final = {"name": "stream", "in": "query", "schema": {"type": "boolean"}}
_STARTING_AFTER: Final = {
    "name": "starting_after",
    "in": "query",
    "description": "The sequence number of the last event that is known.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_SEQUENCE_NUMBER},
}
_PAGE: Final = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED}},
    {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    {"name": "after", "in": "query", "description": "An item's id.", "schema": {"type": "string"}},
]


def add_response_routes(
    app: FastAPI,
    service: ResponsesService,
    max_body_bytes: int,
    deadline: Callable[[Request], float | None],
    *,
    created: dict[str, Any],
    errors: Responses,
) -> None:
    """`created`: what the OpenAPI pages say of the first route's body. `errors`: descriptions by status."""
    found: Responses = {status: errors[status] for status in (400, 401, 403, 404, 503)}

    @app.post(
        "/v1/responses",
        response_model=None,
        responses={200: {"model": wire.ResponseObject, "content": _EVENTS}, **errors},
        openapi_extra=created,
        tags=["responses"],
        summary="Create a response",
    )
    async def create_response(request: Request) -> Response:
        """With `stream`, the answer is a stream of typed server-sent events."""
        ends_at, owner = deadline(request), request.scope[OWNER]
        body = await read_body(request.scope, request.receive, max_body_bytes)
        parsed = parse_response_body(parse_json(body))
        if not parsed.background:
            return ResponseAnswer(service, parsed, ends_at, owner)
        stored = await service.start_in_background(parsed, owner, ends_at)
        return StoredEvents(stored.id, service.follow(stored, -1), -1) if parsed.stream else json_response(stored.body)

    @app.get(
        _PATH,
        response_model=None,
        responses={200: {"model": wire.ResponseObject, "content": _EVENTS}, **found},
        openapi_extra={"parameters": [_STREAM, _STARTING_AFTER]},
        tags=["responses"],
    )
    async def get_response(request: Request, response_id: str) -> Response:
        """`stream=true` streams the events of one in the background, from the one behind `starting_after` on."""
        stored = await service.get(response_id, request.scope[OWNER])
        after = _number(request, "starting_after", -1, 0, MAX_SEQUENCE_NUMBER)
        if request.query_params.get("stream", "false").lower() in ("true", "1"):
            return StoredEvents(stored.id, service.follow(stored, after), after)
        return json_response(stored.body)

    @app.delete(
        _PATH, response_model=None, responses={200: {"model": wire.DeletedResponse}, **found}, tags=["responses"]
    )
    async def delete_response(request: Request, response_id: str) -> Response:
        """One that is still made in the background ends."""
        await service.delete(response_id, request.scope[OWNER])
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @app.post(
        f"{_PATH}/cancel",
        response_model=None,
        responses={200: {"model": wire.ResponseObject}, **found},
        tags=["responses"],
    )
    async def cancel_response(request: Request, response_id: str) -> Response:
        """Only in the background."""
        return json_response(await service.cancel(response_id, request.scope[OWNER]))

    @app.get(
        f"{_PATH}/input_items",
        response_model=None,
        responses={200: {"model": wire.InputItemList}, **found},
        openapi_extra={"parameters": _PAGE},
        tags=["responses"],
    )
    async def list_input_items(request: Request, response_id: str) -> Response:
        """Pages of `limit` (20), `order` `desc` (the default) or `asc`, behind the item `after`."""
        items = await service.history.input_items(response_id, request.scope[OWNER])
        return json_response(_page(request, items))


def _page(request: Request, items: list[Item]) -> dict[str, Any]:
    limit = _number(request, "limit", DEFAULT_LISTED, 1, MAX_LISTED)
    return page_of(items, limit, request.query_params.get("order", "desc"), request.query_params.get("after"))


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else -1
    return check_number(name, number, low, high)
