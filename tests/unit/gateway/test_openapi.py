"""The OpenAPI document and the gateway agree: schemathesis makes requests of one and judges the answers of the other.

Which requests it makes is the same in each run. Every response must be one that the document describes: status, content
type, headers, body, and each event of a stream. What the document forbids must be refused. (The opposite isn't asked:
values and limits are the validator's, and depend on the model.)
"""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import ignored_auth
from starlette import types as asgi
from tests.support.chat import ANSWER, TOOL_CALL, encode
from tests.support.client_texts import assert_tells_nothing_of_the_inside
from tests.support.responses import WEATHER

from chorus_cluster.auth.keys import KeyRing, Scope, new_key, parse_keys
from chorus_cluster.errors import ChorusError, DeadlineExceeded, Overloaded, RequestFailed, Unavailable
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore

KEY, ENTRY = new_key("all", scopes=[Scope.INFERENCE, Scope.METRICS])
WITH_KEY = {"authorization": f"Bearer {KEY}"}
CHAT: dict[str, Any] = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
PATCH = {"type": "custom", "name": "apply_patch"}
TEXT: dict[str, Any] = {"model": "fake-model", "prompt": "Hi"}
RESPONSE: dict[str, Any] = {"model": "fake-model", "input": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
IN_FORM = {"text": {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


class Keys:
    """A key file that never changes."""

    def ring(self) -> KeyRing:
        return parse_keys(f"keys:\n{ENTRY}")


def build(engine: FakeEngineClient, access: Access | None = None, responses: ResponsesService | None = None) -> FastAPI:
    return build_http_app(ChatService(engine), access=access, responses=responses, max_body_bytes=1_000_000)


def described(app: asgi.ASGIApp, max_examples: int = 1, headers: dict[str, str] | None = None) -> BaseSchema:
    config = {
        "generation": {"max-examples": max_examples, "deterministic": True, "database": "none"},
        "phases": {"stateful": {"enabled": False}},
        "checks": {"positive_data_acceptance": {"enabled": False}},
        # Sent with what schemathesis makes itself; it also leaves it out, and expects to be refused then.
        "auth": {"openapi": {"key": {"bearer": KEY}}} if headers else {},
    }
    parsed = SchemathesisConfig.from_dict(config)
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=parsed, headers=headers or {})


OPEN = described(build(FakeEngineClient(encode(ANSWER))), max_examples=100)
CLOSED = described(build(FakeEngineClient(encode(TOOL_CALL)), Access(Keys())), max_examples=20, headers=WITH_KEY)  # type: ignore[arg-type]


def judge(case: schemathesis.Case) -> int:
    """Makes the request and checks the answer; returns its status."""
    # Any name but one is answered 404, and the rest of the body would never be looked at.
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "fake-model"
    response = case.call()
    # A request may name a deadline, however short.
    excluded = [not_a_server_error] if response.status_code == 504 and "x-request-timeout-s" in case.headers else []
    case.validate_response(response, excluded_checks=excluded)
    if response.status_code >= 400:
        message = response.json()["error"]["message"]
        # Any text can be a name in a path, and be quoted.
        for own in case.path_parameters.values():
            message = message.replace(f"'{own}'", "")
        assert_tells_nothing_of_the_inside(message)
    return response.status_code


@OPEN.parametrize()
def test_without_keys(case: schemathesis.Case) -> None:
    assert judge(case) in (200, 400, 404, 405, 504)


@CLOSED.parametrize()
def test_with_keys(case: schemathesis.Case) -> None:
    assert judge(case) in (200, 400, 401, 404, 405, 504)


def ask(
    schema: BaseSchema, path: str, body: Any = None, *, response_id: str = "resp_1", method: str = "", **headers: str
) -> schemathesis.Case:
    case = schema[path][method or ("POST" if body is not None else "GET")].Case(
        headers=headers, path_parameters={"model": "m", "response_id": response_id}
    )
    if body is not None:
        case.body, case.media_type = body, "application/json"
    return case


@pytest.mark.parametrize("authorization", [{}, {"authorization": "Bearer x"}, {"authorization": "Basic eDp5"}], ids=str)
def test_without_the_key_all_is_401_but_health(authorization: dict[str, str]) -> None:
    schema = described(CLOSED.app, headers=WITH_KEY)
    statuses = {}
    for operation in (result.ok() for result in schema.get_all_operations()):
        case = ask(schema, operation.path, CHAT if operation.method == "post" else None, **authorization)
        statuses[operation.path] = case.call_and_validate().status_code
    assert statuses.pop("/health") == 200
    assert len(statuses) > 5 and set(statuses.values()) == {401}


SERVED = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", CHAT | {"tools": TOOLS}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 3}),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/chat/completions", CHAT | USAGE | {"n": 2, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", CHAT | USAGE | {"tools": TOOLS}),
    ("/v1/responses", RESPONSE),
    ("/v1/responses", RESPONSE | IN_FORM),
    ("/v1/responses", RESPONSE | {"tools": [WEATHER, PATCH], "tool_choice": "required"}),
    ("/v1/responses", RESPONSE | {"stream": True}),
    ("/v1/responses", RESPONSE | LOGPROBS | {"stream": True, "max_output_tokens": 20}),
    ("/v1/responses", RESPONSE | {"stream": True, "tools": [WEATHER, PATCH]}),
    ("/v1/completions", TEXT),
    ("/v1/completions", TEXT | {"prompt": ["Hi", "Ho"], "n": 2, "logprobs": 2}),
    ("/v1/completions", TEXT | {"prompt": [1, 2], "echo": True}),
    ("/v1/completions", TEXT | USAGE | {"prompt": [[1, 2], [3]], "logprobs": 0}),
    ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("/tokenize", CHAT | {"tools": TOOLS}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/v1/models", None),
    ("/health", None),
    ("/metrics", None),
]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[-40:]


@pytest.mark.parametrize("script", [ANSWER, TOOL_CALL], ids=["answer", "call"])
@pytest.mark.parametrize(("path", "body"), SERVED, ids=name_of)
def test_what_is_served(path: str, body: Any, script: str) -> None:
    schema = described(build(FakeEngineClient(encode(script))))
    assert ask(schema, path, body).call_and_validate().status_code == 200


@pytest.mark.parametrize(("path", "body"), SERVED, ids=name_of)
def test_it_is_served_to_who_has_a_key(path: str, body: Any) -> None:
    schema = described(CLOSED.app, headers=WITH_KEY)
    # What hypothesis hasn't drawn itself, schemathesis takes for a wrong key.
    case = ask(schema, path, body, **WITH_KEY)
    assert case.call_and_validate(excluded_checks=[ignored_auth]).status_code == 200


GENERATING = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
FAILURES = [Unavailable(), Overloaded(2), DeadlineExceeded(), RequestFailed()]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    # The others ask only what is served, which is known or isn't.
    [(*row, error) for row in SERVED for error in (FAILURES if row[0] in GENERATING else FAILURES[:1])],
    ids=lambda value: value.code if isinstance(value, ChorusError) else name_of(value),
)
def test_what_fails(path: str, body: Any, error: ChorusError) -> None:
    case = ask(described(build(FakeEngineClient(encode(ANSWER), refusal=error))), path, body)
    response = case.call_and_validate(excluded_checks=[not_a_server_error])
    assert response.status_code == (200 if path == "/metrics" else error.http_status)


@pytest.mark.parametrize(("path", "body"), [row for row in SERVED if (row[1] or {}).get("stream")], ids=name_of)
def test_an_error_within_a_stream(path: str, body: Any) -> None:
    engine = FakeEngineClient(encode(ANSWER), failure=(5, RequestFailed()))
    response = ask(described(build(engine)), path, body).call_and_validate()
    assert ('"type":"response.failed"' if path == "/v1/responses" else '"code":"request_failed"') in response.text


@pytest.fixture
def stored(tmp_path: Path) -> tuple[BaseSchema, str, str]:
    """A gateway with a store, and two responses: the second was made in the background, with events."""
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    engine = FakeEngineClient(encode(ANSWER))
    ids = asyncio.run(make_two(url, engine))

    async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Each call comes in an event loop of its own, and connections live no longer than theirs."""
        database = Database(url)
        responses = ResponsesService(ChatService(engine), ResponseStore(database, ttl_s=1000.0))
        await build(engine, responses=responses)(scope, receive, send)
        await database.close()

    return described(app), *ids


async def make_two(url: str, engine: FakeEngineClient) -> tuple[str, str]:
    database = Database(url)
    await database.migrate()
    responses = ResponsesService(ChatService(engine), ResponseStore(database, ttl_s=1000.0))
    transport = httpx.ASGITransport(app=build(engine, responses=responses))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        first = await http.post("/v1/responses", json=RESPONSE)
        # Its stream ends when it does.
        streamed = await http.post("/v1/responses", json=RESPONSE | {"background": True, "stream": True})
    assert responses.jobs is not None
    await responses.jobs.close()
    await database.close()
    return first.json()["id"], streamed.text.partition('"id":"')[2].partition('"')[0]


@pytest.mark.parametrize(
    ("method", "rest", "query"),
    [
        ("GET", "", {}),
        ("GET", "", {"stream": "true"}),
        ("GET", "", {"stream": "true", "starting_after": "2"}),
        ("GET", "/input_items", {}),
        ("GET", "/input_items", {"limit": "1", "order": "asc"}),
        ("POST", "/cancel", {}),
        ("DELETE", "", {}),
    ],
    ids=str,
)
def test_what_is_stored(stored: tuple[BaseSchema, str, str], method: str, rest: str, query: dict[str, str]) -> None:
    schema, _, id = stored
    case = ask(schema, f"/v1/responses/{{response_id}}{rest}", response_id=id, method=method)
    case.query = query
    assert case.call_and_validate().status_code == 200


def test_what_goes_on_from_it(stored: tuple[BaseSchema, str, str]) -> None:
    schema, id, _ = stored
    for fields in ({}, {"stream": True}):
        case = ask(schema, "/v1/responses", RESPONSE | {"previous_response_id": id} | fields)
        assert case.call_and_validate().status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_the_description_of_events_is_not_for_anything(path: str) -> None:
    """The check of events is schemathesis': that it looks into them is shown here, by one that must fail."""
    app = build(FakeEngineClient(encode(ANSWER)))
    document = copy.deepcopy(app.openapi())
    if path == "/v1/responses":
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        event = content["text/event-stream"]["itemSchema"]["properties"]["data"]["contentSchema"]
    else:
        event = document["components"]["schemas"]["ChatCompletionChunk"]
    event["required"].append("colour")
    app.openapi = lambda: document  # type: ignore[method-assign]
    with pytest.raises(FailureGroup):
        ask(
            described(app), path, (RESPONSE if path == "/v1/responses" else CHAT) | {"stream": True}
        ).call_and_validate()
