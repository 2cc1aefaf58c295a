"""What the model is held to: which tools it may or must call, and the form of its answer."""

from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.openai.formats import ANY_OBJECT, json_schema_format
from chorus_cluster.gateway.request import OutputFormat, ToolChoice
from chorus_cluster.gateway.responses.tools import Toolbox, harmony_name

_CHOICES: Final = "must be 'auto', 'none', 'required', or an object of type 'function', 'custom' or 'allowed_tools'"
_FORMAT: Final = "text.format"


def read_tool_choice(choice: str | dict[str, Any] | None, toolbox: Toolbox) -> ToolChoice:
    """Errors: InvalidRequest."""
    if choice is None or choice == "auto":
        return ToolChoice("auto")
    if choice == "none":
        return ToolChoice("none")
    if choice == "required":
        if not toolbox.tools:
            raise InvalidRequest("tool_choice", "is 'required', but there are no tools to call")
        return ToolChoice("required")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or kind not in ("function", "custom", "allowed_tools"):
        raise InvalidRequest("tool_choice", _CHOICES)
    if kind != "allowed_tools":
        return ToolChoice("required", (_declared(choice, "tool_choice", toolbox),))
    mode, tools = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidRequest("tool_choice.mode", "must be 'auto' or 'required'")
    if not isinstance(tools, list) or not tools:
        raise InvalidRequest("tool_choice.tools", "must name at least one tool")
    names = [_declared(tool, f"tool_choice.tools[{i}]", toolbox) for i, tool in enumerate(tools)]
    return ToolChoice(mode, tuple(dict.fromkeys(names)))


def _declared(tool: Any, field: str, toolbox: Toolbox) -> str:
    """What the model calls a tool that a choice names."""
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(name, str):
        raise InvalidRequest(f"{field}.name", "must be a string")
    namespace = tool.get("namespace")
    found = harmony_name(name, namespace if isinstance(namespace, str) else None)
    if found not in (declared.name for declared in toolbox.tools):
        raise InvalidRequest(f"{field}.name", "is none of 'tools'")
    return found


def read_text_format(value: dict[str, Any] | None) -> OutputFormat | None:
    """Errors: InvalidRequest."""
    kind = "text" if value is None else value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat("json_schema", ANY_OBJECT, _FORMAT)
    if kind != "json_schema":
        raise InvalidRequest(f"{_FORMAT}.type", "must be 'text', 'json_object' or 'json_schema'")
    return json_schema_format(value, _FORMAT)
