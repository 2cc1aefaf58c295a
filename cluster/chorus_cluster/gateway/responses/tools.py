"""Tools of a response: what the model is shown of them, and whose call a call of the model is.

Harmony knows functions with JSON arguments. A custom tool, whose input is free text, is shown as a function of one
string, `input`; the functions of a namespace have its name before theirs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.responses.models import ResponseTool
from chorus_cluster.gateway.validate import check_size
from chorus_cluster.harmony.conversation import Tool

# Hosted elsewhere, and declared by agents in every request, wanted or not: the model isn't told of them.
_LEFT_OUT: Final = ("web_search", "image_generation", "tool_search")
_RUN_NOWHERE: Final = "does not run on this server; declare a function and run it yourself"
_JOINT: Final = "__"
_FREE_TEXT: Final = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ToolName:
    """What a client calls a tool."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class Toolbox:
    """`tools` as the model is shown them, and where each stands in the request; `shown`: what the response names."""

    tools: tuple[Tool, ...]
    fields: tuple[str, ...]
    shown: list[dict[str, Any]]
    _names: Mapping[str, ToolName]

    def called(self, name: str) -> ToolName:
        """Whose call one by this name is. The model may call what nobody declared."""
        return self._names.get(name) or ToolName(name)


def read_tools(tools: Sequence[ResponseTool]) -> Toolbox:
    """Errors: InvalidRequest."""
    declared: list[tuple[str, str | None, ResponseTool]] = []
    shown = []
    for i, tool in enumerate(tools):
        field = f"tools[{i}]"
        if tool.type.startswith(_LEFT_OUT):
            continue
        if tool.type == "namespace":
            if not tool.name or tool.tools is None:
                raise InvalidRequest(field, "must have 'name' and 'tools', as a namespace")
            declared += [(f"{field}.tools[{j}]", tool.name, inner) for j, inner in enumerate(tool.tools)]
        else:
            declared.append((field, None, tool))
        shown.append(tool.model_dump(exclude_none=True))
    check_size("tools", len(declared))
    names: dict[str, ToolName] = {}
    for field, namespace, tool in declared:
        if tool.type not in ("function", "custom"):
            raise InvalidRequest(f"{field}.type", f"{tool.type[:50]!r} {_RUN_NOWHERE}")
        if not tool.name:
            raise InvalidRequest(f"{field}.name", "is required")
        name = harmony_name(tool.name, namespace)
        if name in names:
            raise InvalidRequest(f"{field}.name", "is another tool's, too")
        names[name] = ToolName(tool.name, namespace, tool.type == "custom")
    return Toolbox(
        tuple(_to_tool(tool, name) for (_, _, tool), name in zip(declared, names, strict=True)),
        tuple(field for field, _, _ in declared),
        shown,
        names,
    )


def harmony_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool."""
    if not namespace:
        return name
    return namespace + name if namespace.endswith(_JOINT) else f"{namespace}{_JOINT}{name}"


def custom_arguments(input: str) -> str:
    """The arguments of a custom tool's call, as the model writes them."""
    return json.dumps({"input": input}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """A custom tool's input; all that the model wrote, where it did not write what it was shown."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    found = value.get("input") if isinstance(value, dict) else None
    return _whole_characters(found) if isinstance(found, str) else arguments


def _whole_characters(text: str) -> str:
    """U+FFFD stands for halves of surrogate pairs, which JSON's escapes can spell, and no other text holds."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _to_tool(tool: ResponseTool, name: str) -> Tool:
    description = tool.description or ""
    if tool.type == "function":
        return Tool(name, description, tool.parameters, strict=bool(tool.strict))
    kind = tool.format or {}
    if kind.get("type") == "grammar":
        grammar = f"The input must match this {kind.get('syntax', '')} grammar:\n{kind.get('definition', '')}"
        description = f"{description}\n\n{grammar}".strip()
    parameters = {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    # Strict, so that there always is an input.
    return Tool(name, description, parameters, strict=True)
