"""What the rows of the conformance table are made of: a claim about one parameter or event, and what shows it."""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import httpx
from tests.support.chat import ANSWER, encode

from chorus_cluster.errors import ChorusError
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import engine_pb2

Standing = Literal["supported", "refused", "ignored"]
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """`show` raises AssertionError where the claim doesn't hold."""

    name: str
    standing: Standing
    show: Callable[[], Awaitable[None]]
    # Of which values; empty: of all.
    values: str = ""
    # What it does, why it is refused, or why it may be ignored.
    note: str = ""


@dataclass(frozen=True, slots=True)
class Api:
    """A section of the table."""

    path: str
    parameters: Sequence[Row]
    # What the parameters must be: every field that we read, and every one that OpenAI's client sends.
    expected_parameters: frozenset[str]
    events: Sequence[Row] = ()
    # Every field and value of OpenAI's type for an event.
    expected_events: frozenset[str] = frozenset()
    # Of a parameter, every value that its rows must name, as OpenAI's types have them.
    expected_values: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def named_values(self, parameter: str) -> set[str]:
        """The values that rows of a parameter stand for."""
        rows = (row for row in self.parameters if row.name == parameter)
        return {value for row in rows for value in re.findall("`([^`]+)`", row.values)}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    # Of an answer that is no stream.
    body: Body
    # Of a stream; without [DONE], which `is_done` tells of.
    events: list[Body]
    is_done: bool
    # What the engine was asked.
    requests: list[engine_pb2.GenerateRequest]

    @property
    def error(self) -> Body:
        error: Body = self.body["error"]
        return error


@dataclass(frozen=True, slots=True)
class Door:
    """A route, and a body that it serves; rows say what they change."""

    path: str
    body: Body
    script: str = ANSWER
    failure: tuple[int, ChorusError] | None = field(default=None)

    async def ask(self, fields: Body, script: str | None = None) -> Reply:
        """The reply to the body with these fields; one of None is left out."""
        engine = FakeEngineClient(encode(self.script if script is None else script), failure=self.failure)
        app = build_http_app(ChatService(engine))
        body = {name: value for name, value in (self.body | fields).items() if value is not None}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
            response = await client.post(self.path, json=body)
        requests = list(engine.requests)
        for request in requests:
            # Drawn anew each time.
            request.request_id = ""
        if not response.headers["content-type"].startswith("text/event-stream"):
            return Reply(response.status_code, response.json(), [], False, requests)
        events, is_done = read_events(response.text)
        return Reply(response.status_code, {}, events, is_done, requests)

    async def served(self, fields: Body, script: str | None = None) -> Reply:
        reply = await self.ask(fields, script)
        assert reply.status == 200, reply.body
        return reply

    def supported(self, name: str, shown_by: Callable[[], Awaitable[bool]], note: str = "", values: str = "") -> Row:
        """`shown_by` says whether it has its effect."""

        async def show() -> None:
            assert await shown_by()

        return Row(name, "supported", show, values, note)

    def sampled(self, name: str, value: Any, note: str = "", **engine: Any) -> Row:
        """A parameter whose value the engine is given; `engine`: under which name, as what."""
        ((attribute, expected),) = (engine or {name: value}).items()

        async def show() -> None:
            (plain,), (changed,) = (
                (await self.served({name: None})).requests,
                (await self.served({name: value})).requests,
            )
            given = getattr(changed if attribute == "max_tokens" else changed.sampling, attribute)
            assert (dict(given) if attribute == "logit_bias" else round(given, 6)) == expected
            assert changed != plain

        return Row(name, "supported", show, "", note)

    def refused(
        self, name: str, value: Any, note: str, values: str = "", param: str | None = None, beside: Body | None = None
    ) -> Row:
        """`param`: what the error names, if it isn't `name`; `beside`: what else it takes."""

        async def show() -> None:
            reply = await self.ask((beside or {}) | {name: value})
            assert reply.status == 400, reply
            assert (reply.error["type"], reply.error["param"]) == ("invalid_request_error", param or name)
            assert reply.requests == []

        return Row(name, "refused", show, values, note)

    def ignored(self, name: str, *samples: Any, note: str = "", values: str = "", beside: Body | None = None) -> Row:
        """Nothing changes, for the engine or in the answer."""

        async def show() -> None:
            assert samples
            plain = await self.served((beside or {}) | {name: None})
            for sample in samples:
                reply = await self.served((beside or {}) | {name: sample})
                assert reply.requests == plain.requests
                assert without_identity(reply, name) == without_identity(plain, name)

        return Row(name, "ignored", show, values, note)

    def sent(self, name: str, fields: Body, is_it: Callable[[Body], bool], note: str = "", script: str = ANSWER) -> Row:
        """An event, or a part of events, of a stream."""

        async def show() -> None:
            reply = await self.served({"stream": True} | fields, script)
            assert any(map(is_it, reply.events)), reply.events

        return Row(name, "supported", show, "", note)

    def never_sent(
        self, name: str, is_it: Callable[[Body], bool], note: str, asked: Sequence[tuple[Body, str]] = ()
    ) -> Row:
        """A part of OpenAI's events that ours don't have, whatever is asked for. `asked`: fields and script."""

        async def show() -> None:
            wanted: Body = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}
            for fields, script in asked or [({}, self.script)]:
                events = (await self.served(wanted | fields, script)).events
                assert events and not any(map(is_it, events))

        return Row(name, "ignored", show, "", note)


def read_events(text: str) -> tuple[list[Body], bool]:
    """The events of a stream, whether they are named or not; and whether [DONE] was the last."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    is_done = lines[-1] == "[DONE]"
    return [json.loads(line) for line in (lines[:-1] if is_done else lines)], is_done


def without_identity(reply: Reply, echoed: str) -> Any:
    """What is the same for equal requests. `echoed`: a parameter that a response only repeats."""
    parts = [reply.body, *reply.events]
    for part in list(parts):
        parts += [part["response"]] if "response" in part else []
    for part in parts:
        part.pop(echoed, None)
    return _without(parts, frozenset({"id", "item_id", "created", "created_at", "completed_at"}))


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(each, names) for name, each in value.items() if name not in names}
    return [_without(each, names) for each in value] if isinstance(value, list) else value


def types_of(union: Any) -> frozenset[str]:
    """The types that the members of one of OpenAI's unions have; a member may be such a text itself."""
    members = get_args(union) or (union,)
    return frozenset(
        text
        for member in members
        for text in literals(member if get_origin(member) is Literal else get_type_hints(member)["type"])
    )


def values_of(parameters: Any, name: str) -> frozenset[str]:
    """The texts that a parameter of OpenAI's client may be."""
    return frozenset(literals(get_type_hints(parameters)[name]))


def literals(annotation: Any) -> Iterator[str]:
    """The texts that a type allows."""
    if isinstance(annotation, str):
        yield annotation
    for part in get_args(annotation):
        yield from literals(part)
