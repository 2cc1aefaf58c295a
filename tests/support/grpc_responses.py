"""Messages of ResponsesService put back into the JSON of /v1/responses, field by field: what they lose is seen. And the
status of its calls."""

import json
import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# What JSON has always the same, and protobuf doesn't say.
ALWAYS: dict[str, Any] = {"verbosity": "medium", "cache_write_tokens": 0}


def stripped(value: Any) -> Any:
    """JSON without what is absent, empty, or always so: protobuf doesn't tell these apart."""
    if isinstance(value, list):
        return [stripped(element) for element in value]
    if not isinstance(value, dict):
        return value
    kept = {key: stripped(item) for key, item in value.items() if not (key in ALWAYS and item == ALWAYS[key])}
    return {key: item for key, item in kept.items() if item not in (None, "", [], {}) and item is not False}


def as_json(message: Message) -> dict[str, Any]:
    """What the message says, as `stripped` JSON."""
    found: dict[str, Any] = stripped(_json(message))
    return found


def _json(message: Message) -> Any:
    fields = {field.name: _value(message, field) for field in message.DESCRIPTOR.fields if _is_there(message, field)}
    shape = _SHAPES.get(message.DESCRIPTOR.name)
    return fields if shape is None else shape(fields)


def _is_there(message: Message, field: FieldDescriptor) -> bool:
    return not field.has_presence or message.HasField(field.name)


def _value(message: Message, field: FieldDescriptor) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.message_type is not None:
        return [_json(element) for element in value] if field.is_repeated else _json(value)
    if field.enum_type is not None:
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", field.enum_type.name).upper()
        name = field.enum_type.values_by_number[value].name.removeprefix(f"{prefix}_")
        return None if name == "UNSPECIFIED" else name.lower()
    return list(value) if field.is_repeated else value


def _only(fields: dict[str, Any]) -> tuple[str, Any]:
    ((kind, held),) = fields.items()
    return kind, held


def _item(fields: dict[str, Any]) -> dict[str, Any]:
    own = {"id": fields.pop("id"), "status": fields.pop("status")}
    kind, held = _only(fields)
    return {**own, "type": kind, **held}


def _part(fields: dict[str, Any]) -> dict[str, Any]:
    kind, held = _only(fields)
    return {"type": kind, **(held if kind == "output_text" else {"text": held})}


def _logprob(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields["sampled"], "top_logprobs": fields["top"]}


def _candidate(fields: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": list(fields.pop("token_bytes")), **fields}


def _tool(fields: dict[str, Any]) -> dict[str, Any]:
    kind, held = _only(fields)
    if parameters := held.pop("parameters_json", None):
        held["parameters"] = json.loads(parameters)
    if grammar := held.pop("grammar", None):
        held["format"] = {"type": "grammar", **grammar}
    return {"type": kind, **held}


def _tool_name(fields: dict[str, Any]) -> dict[str, Any]:
    namespace = fields.pop("namespace")
    kind, name = _only(fields)
    return {"type": kind, "name": name, "namespace": namespace}


def _tool_choice(fields: dict[str, Any]) -> Any:
    kind, held = _only(fields)
    return {"type": kind, **held} if kind == "allowed_tools" else held


def _text_format(fields: dict[str, Any]) -> dict[str, Any]:
    kind, held = _only(fields)
    if kind == "json_object":
        return {"type": kind}
    return {"type": kind, "schema": json.loads(held.pop("schema_json")), **held}


def _response(fields: dict[str, Any]) -> dict[str, Any]:
    effort, format = fields.pop("reasoning_effort"), fields.pop("text_format", {"type": "text"})
    return {"object": "response", "reasoning": {"effort": effort}, "text": {"format": format}, **fields}


def _usage(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens_details": {"cached_tokens": fields.pop("cached_tokens")},
        "output_tokens_details": {"reasoning_tokens": fields.pop("reasoning_tokens")},
        **fields,
    }


def _event(fields: dict[str, Any]) -> dict[str, Any]:
    number = fields.pop("sequence_number")
    kind, held = _only(fields)
    held = {"response": held} if "object" in held else held
    return {"type": event_type(kind), "sequence_number": number, **held}


def event_type(field: str) -> str:
    """What JSON calls an event."""
    return "response." + re.sub(r"_(added|delta|done)$", r".\1", field)


_SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ResponseItem": _item,
    "ContentPart": _part,
    "ContentLogprob": _logprob,
    "TokenLogprobEntry": _candidate,
    "ResponseTool": _tool,
    "ToolName": _tool_name,
    "ResponseToolChoice": _tool_choice,
    "TextFormat": _text_format,
    "Response": _response,
    "ResponseUsage": _usage,
    "ResponseEvent": _event,
    "InputItemList": lambda fields: {"object": "list", **fields},
    "DeletedResponse": lambda fields: {"object": "response", **fields},
}


async def refused(call: Any) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """The status that a call ends with, and its trailing metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if hasattr(call, "read") else call)
    return caught.value.code(), dict(caught.value.trailing_metadata() or ())
