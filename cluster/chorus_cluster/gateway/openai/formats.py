"""What a client may ask of an answer's form: a tool choice, a response format, vLLM's structured outputs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.request import OutputFormat, ToolChoice
from chorus_cluster.harmony.conversation import ResponseFormat

ANY_OBJECT = '{"type":"object"}'
_MAX_CHOICES = 1024
# Tiers become priorities of the engine's queue, where lower runs first.
_TIERS = {"auto": 0, "default": 0, "scale": 0, "priority": -100, "flex": 100}
_INT32 = 2**31


def parse_tool_choice(choice: Any) -> ToolChoice:
    """Of chat completions and of responses: these name functions directly, those in an object of their own.

    Errors: `InvalidRequest`.
    """
    if choice is None:
        return ToolChoice()
    if choice in ("auto", "none", "required"):
        return ToolChoice(choice)
    if not isinstance(choice, Mapping):
        raise InvalidRequest("tool_choice", "must be 'auto', 'none', 'required', or an object")
    kind = choice.get("type")
    if kind == "function":
        return ToolChoice("required", (_function_name(choice, "tool_choice"),))
    if kind == "allowed_tools":
        return _allowed_tools(choice.get("allowed_tools", choice))
    raise InvalidRequest("tool_choice.type", "must be 'function' or 'allowed_tools'")


def _allowed_tools(allowed: Any) -> ToolChoice:
    field = "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping) or allowed.get("mode") not in ("auto", "required"):
        raise InvalidRequest(f"{field}.mode", "must be 'auto' or 'required'")
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not tools:
        raise InvalidRequest(f"{field}.tools", "must hold at least one tool")
    names = []
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise InvalidRequest(f"{field}.tools[{i}].type", "must be 'function'")
        names.append(_function_name(tool, f"{field}.tools[{i}]"))
    return ToolChoice(allowed["mode"], tuple(names))


def _function_name(tool: Mapping[str, Any], field: str) -> str:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise InvalidRequest(f"{field}.function.name", "must be a string")
    return name


def parse_response_format(value: Any) -> OutputFormat | None:
    """`response_format` of chat completions. Errors: `InvalidRequest`."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat("json_schema", ANY_OBJECT, "response_format")
    if kind == "json_schema":
        return json_schema_format(value.get("json_schema"), "response_format.json_schema")
    raise InvalidRequest("response_format.type", "must be 'text', 'json_object' or 'json_schema'")


def json_schema_format(value: Any, field: str) -> OutputFormat:
    """An object with `name`, `schema` and `description`. `strict` makes no difference: what is asked for is kept to.

    Errors: `InvalidRequest`.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequest(field, "must be an object")
    name, schema, description = value.get("name"), value.get("schema"), value.get("description")
    if not isinstance(name, str):
        raise InvalidRequest(f"{field}.name", "must be a string")
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{field}.schema", "must be an object")
    if description is not None and not isinstance(description, str):
        raise InvalidRequest(f"{field}.description", "must be a string")
    announced = ResponseFormat(name, schema, description or "")
    return OutputFormat("json_schema", json.dumps(schema), f"{field}.schema", announced)


def parse_structured_outputs(value: Any) -> OutputFormat | None:
    """vLLM's field: one of `json`, `json_object`, `regex`, `choice` and `grammar`. Errors: `InvalidRequest`."""
    if value is None:
        return None
    field = "structured_outputs"
    given = {name: item for name, item in value.items() if item is not None} if isinstance(value, Mapping) else {}
    if len(given) != 1 or not given.keys() <= {"json", "json_object", "regex", "choice", "grammar"}:
        raise InvalidRequest(field, "must hold one of 'json', 'json_object', 'regex', 'choice' and 'grammar'")
    ((kind, item),) = given.items()
    field = f"{field}.{kind}"
    if kind == "json_object":
        return OutputFormat("json_schema", ANY_OBJECT, field)
    if kind == "choice":
        return OutputFormat("choice", json.dumps(_choices(item, field)), field)
    if kind == "json" and isinstance(item, Mapping | bool):
        return OutputFormat("json_schema", json.dumps(item), field)
    if not isinstance(item, str):
        raise InvalidRequest(field, "must be a string" if kind != "json" else "must be an object or a string of JSON")
    if kind == "json":
        return OutputFormat("json_schema", item, field)
    return OutputFormat("regex" if kind == "regex" else "lark", item, field)


def _choices(value: Any, field: str) -> Sequence[str]:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) for choice in value):
        raise InvalidRequest(field, "must be an array of strings")
    if len(value) > _MAX_CHOICES:
        raise InvalidRequest(field, f"holds {len(value)} elements; at most {_MAX_CHOICES} are allowed")
    return value


def parse_priority(tier: Any, priority: int | None) -> int:
    """From OpenAI's `service_tier` or vLLM's `priority`, which says it more exactly. Errors: `InvalidRequest`."""
    if tier is not None and (not isinstance(tier, str) or tier not in _TIERS):
        raise InvalidRequest("service_tier", "must be 'auto', 'default', 'flex' or 'priority'")
    if priority is None:
        return 0 if tier is None else _TIERS[tier]
    if not -_INT32 <= priority < _INT32:
        raise InvalidRequest("priority", "must fit into a signed 32-bit integer")
    return priority
