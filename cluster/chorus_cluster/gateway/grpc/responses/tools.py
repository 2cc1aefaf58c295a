"""What a response says of its tools, its tool choice and its text format, as messages of `chorus.v1`.

Clients of HTTP are given these back as they sent them, with whatever else they hold; here are the fields that are read.
"""

from collections.abc import Mapping
from typing import Any

from chorus_cluster.gateway.grpc.responses import names
from chorus_cluster.gateway.grpc.responses.names import text
from chorus_cluster.gateway.openai.sse import encode
from chorus_protos.v1 import chat_pb2
from chorus_protos.v1 import responses_pb2 as pb


def tool_to_pb(tool: Mapping[str, Any]) -> pb.ResponseTool:
    named = {"name": tool["name"], "description": tool.get("description")}
    if tool["type"] == "namespace":
        return pb.ResponseTool(namespace=pb.ToolNamespace(tools=map(tool_to_pb, tool["tools"]), **named))
    if tool["type"] == "function":
        parameters = tool.get("parameters")
        function = chat_pb2.FunctionTool(
            parameters_json="" if parameters is None else encode(parameters), strict=bool(tool.get("strict")), **named
        )
        return pb.ResponseTool(function=function)
    return pb.ResponseTool(custom=pb.CustomTool(grammar=_grammar(tool.get("format") or {}), **named))


def _grammar(format: Mapping[str, Any]) -> pb.InputGrammar | None:
    if format.get("type") != "grammar":
        return None
    return pb.InputGrammar(syntax=text(format.get("syntax")), definition=text(format.get("definition")))


def tool_choice_to_pb(choice: str | Mapping[str, Any]) -> pb.ResponseToolChoice:
    if isinstance(choice, str):
        return pb.ResponseToolChoice(mode=names.TOOL_CHOICES[choice])
    if choice["type"] != "allowed_tools":
        return pb.ResponseToolChoice(tool=_tool_name(choice))
    allowed = pb.AllowedTools(
        mode=names.TOOL_CHOICES[choice.get("mode", "auto")], tools=map(_tool_name, choice["tools"])
    )
    return pb.ResponseToolChoice(allowed_tools=allowed)


def _tool_name(named: Mapping[str, Any]) -> pb.ToolName:
    namespace = text(named.get("namespace"))
    if named.get("type") == "custom":
        return pb.ToolName(custom=named["name"], namespace=namespace)
    return pb.ToolName(function=named["name"], namespace=namespace)


def text_format_to_pb(format: Mapping[str, Any]) -> pb.TextFormat | None:
    """None: any text."""
    if format["type"] == "json_object":
        return pb.TextFormat(json_object=True)
    if format["type"] != "json_schema":
        return None
    strict = format.get("strict")
    schema = pb.JsonSchemaTextFormat(
        name=format["name"],
        schema_json=encode(format["schema"]),
        description=text(format.get("description")),
        strict=strict if isinstance(strict, bool) else None,
    )
    return pb.TextFormat(json_schema=schema)
