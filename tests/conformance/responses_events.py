"""/v1/responses: what its streams send."""

from typing import Any, get_args

from openai.types.responses import ResponseStreamEvent
from tests.conformance.responses_door import DOOR, PATCH, PATCH_CALL, keeper
from tests.conformance.rows import Body, Door, Row, literals
from tests.support.chat import ANSWER, TOOL_CALL
from tests.support.responses import WEATHER

from chorus_cluster.errors import RequestFailed

FAILING = Door(DOOR.path, DOOR.body, failure=(5, RequestFailed()))
EVERYTHING: Body = {
    "stream": True,
    "tools": [WEATHER, PATCH, {"type": "web_search"}, {"type": "image_generation"}],
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content", "web_search_call.action.sources"],
    "reasoning": {"summary": "detailed"},
    "stream_options": {"include_obfuscation": True},
}


async def types_sent(door: Door = DOOR, script: str = ANSWER, **fields: Any) -> list[str]:
    return [event["type"] for event in (await door.served({"stream": True} | fields, script)).events]


async def _created() -> bool:
    return (await types_sent())[:2] == ["response.created", "response.in_progress"]


async def _queued() -> bool:
    async with keeper() as kept:
        types = [event["type"] for event in await kept.stream(background=True)]
    return types[:3] == ["response.created", "response.queued", "response.in_progress"]


async def _completed() -> bool:
    *_, last = (await DOOR.served({"stream": True})).events
    return last["type"] == "response.completed" and last["response"]["usage"]["total_tokens"] > 0


async def _incomplete() -> bool:
    return (await types_sent(max_output_tokens=4))[-1] == "response.incomplete"


async def _failed() -> bool:
    *_, last = (await FAILING.served({"stream": True})).events
    return last["type"] == "response.failed" and last["response"]["error"]["code"] == "server_error"


async def _error() -> bool:
    """Of the store: the response itself may be well."""
    async with keeper() as kept:
        id = (await kept.stream(background=True))[0]["response"]["id"]
        await kept.database.write(lambda connection: connection.exec_driver_sql("DROP TABLE response_events"))
        response = await kept.http.get(f"/v1/responses/{id}?stream=true")
    return response.text.startswith("event: error\n") and '"code":"unavailable"' in response.text


def _sent(name: str, note: str = "", script: str = ANSWER, **fields: Any) -> Row:
    return DOOR.sent(name, fields, lambda event: event["type"] == name, note, script)


def _never(note: str, *names: str) -> list[Row]:
    asked = [(EVERYTHING, script) for script in (ANSWER, TOOL_CALL, PATCH_CALL)]
    return [DOOR.never_sent(name, lambda event, name=name: event["type"] == name, note, asked) for name in names]  # type: ignore[misc]


def _of(family: str, *stages: str) -> list[str]:
    return [f"response.{family}.{stage}" for stage in stages]


RUNS_NOWHERE = "no such tool runs here"
_CALL = ("in_progress", "completed")
EVENTS = [
    DOOR.supported("response.created", _created, "the first"),
    DOOR.supported("response.queued", _queued, "in the background"),
    DOOR.supported("response.in_progress", _created),
    DOOR.supported("response.completed", _completed, "the last, with the whole response and its usage"),
    DOOR.supported("response.incomplete", _incomplete, "the last, where `max_output_tokens` cut it"),
    DOOR.supported("response.failed", _failed, "the last"),
    DOOR.supported("error", _error, "the last, where the store fails while a background response is followed"),
    _sent("response.output_item.added"),
    _sent("response.output_item.done"),
    _sent("response.content_part.added", "reasoning has parts, too"),
    _sent("response.content_part.done"),
    _sent("response.reasoning_text.delta", "gpt-oss's own words"),
    _sent("response.reasoning_text.done"),
    _sent("response.output_text.delta"),
    _sent("response.output_text.done"),
    _sent("response.function_call_arguments.delta", script=TOOL_CALL),
    _sent("response.function_call_arguments.done", script=TOOL_CALL),
    _sent(
        "response.custom_tool_call_input.delta",
        "one, with all of it; with a grammar, pieces as they are written",
        PATCH_CALL,
        tools=[PATCH],
    ),
    _sent("response.custom_tool_call_input.done", script=PATCH_CALL, tools=[PATCH]),
    *_never("the reasoning itself is sent", *_of("reasoning_summary_part", "added", "done")),
    *_never("the reasoning itself is sent", *_of("reasoning_summary_text", "delta", "done")),
    *_never("gpt-oss refuses in its answer", *_of("refusal", "delta", "done")),
    *_never("nothing is cited", "response.output_text.annotation.added"),
    *_never("`truncation` leaves out what is too long", "response.compaction.compacting"),
    *_never("gpt-oss writes text alone", *_of("audio", "delta", "done"), *_of("audio.transcript", "delta", "done")),
    *_never(RUNS_NOWHERE, *_of("web_search_call", *_CALL, "searching")),
    *_never(RUNS_NOWHERE, *_of("file_search_call", *_CALL, "searching")),
    *_never(RUNS_NOWHERE, *_of("code_interpreter_call", *_CALL, "interpreting")),
    *_never(RUNS_NOWHERE, *_of("code_interpreter_call_code", "delta", "done")),
    *_never(RUNS_NOWHERE, *_of("image_generation_call", *_CALL, "generating", "partial_image")),
    *_never(RUNS_NOWHERE, *_of("mcp_call", *_CALL, "failed"), *_of("mcp_call_arguments", "delta", "done")),
    *_never(RUNS_NOWHERE, *_of("mcp_list_tools", *_CALL, "failed")),
    *_never(RUNS_NOWHERE, *_of("shell_call_command", "added", "delta", "done")),
    *_never(RUNS_NOWHERE, *_of("shell_call_output_content", "delta", "done")),
]
_UNION, *_ = get_args(ResponseStreamEvent)
EXPECTED_EVENTS = frozenset(
    name for event in get_args(_UNION) for name in literals(event.model_fields["type"].annotation)
)
