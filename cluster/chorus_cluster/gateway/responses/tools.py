"""Tools of a response: what the model is shown of them, and whose call a call of the model is.

Harmony knows functions with JSON arguments. A custom tool, whose input is free text, is shown as a function of one
string, `input`. One with a grammar is shown as a function of a string, and its calls are the input as it is, which a
grammar can hold. The functions of a namespace have its name before theirs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.responses.models import ResponseTool
from chorus_cluster.gateway.validate import check_size
from chorus_cluster.harmony.conversation import InputGrammar, Tool

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
_HELD_TEXT: Final = {"type": "string"}
_HOW_TO_CALL: Final = {
    "lark": "A call is the input as it is, without JSON around it. It must match this Lark grammar:",
    "regex": "A call is the input as it is, without JSON around it. It must match this regular expression:",
}


@dataclass(frozen=True, slots=True)
class ToolName:
    """What a client calls a tool."""

    name: str
    namespace: str | None = None
    is_custom: bool = False
    # Whether it is a custom tool with a grammar, so that its calls are no JSON.
    is_held: bool = False


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
    read: list[Tool] = []
    for field, namespace, tool in declared:
        if tool.type not in ("function", "custom"):
            raise InvalidRequest(f"{field}.type", f"{tool.type[:50]!r} {_RUN_NOWHERE}")
        if not tool.name:
            raise InvalidRequest(f"{field}.name", "is required")
        name = harmony_name(tool.name, namespace)
        if name in names:
            raise InvalidRequest(f"{field}.name", "is another tool's, too")
        is_custom = tool.type == "custom"
        grammar = _input_grammar(tool.format, f"{field}.format") if is_custom else None
        names[name] = ToolName(tool.name, namespace, is_custom, grammar is not None)
        read.append(_to_tool(tool, name, grammar))
    return Toolbox(
        tuple(read),
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


def _input_grammar(format: Mapping[str, Any] | None, field: str) -> InputGrammar | None:
    """None: any text. Errors: InvalidRequest."""
    kind = "text" if format is None else format.get("type")
    if format is None or kind == "text":
        return None
    if kind != "grammar":
        raise InvalidRequest(f"{field}.type", "must be 'text' or 'grammar'")
    syntax, definition = format.get("syntax"), format.get("definition")
    if syntax not in ("lark", "regex"):
        raise InvalidRequest(f"{field}.syntax", "must be 'lark' or 'regex'")
    if not isinstance(definition, str):
        raise InvalidRequest(f"{field}.definition", "must be a string")
    return InputGrammar(syntax, definition)


def _to_tool(tool: ResponseTool, name: str, grammar: InputGrammar | None) -> Tool:
    description = tool.description or ""
    if tool.type == "function":
        return Tool(name, description, tool.parameters, strict=bool(tool.strict))
    if grammar is None:
        # Strict, so that there always is an input.
        return Tool(name, description, _FREE_TEXT, strict=True)
    told = f"{_HOW_TO_CALL[grammar.syntax]}\n{grammar.definition}"
    return Tool(name, f"{description}\n\n{told}".strip(), _HELD_TEXT, input_grammar=grammar)
