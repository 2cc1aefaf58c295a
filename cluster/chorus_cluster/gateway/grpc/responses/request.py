"""`chorus.v1.CreateResponseRequest` to the body that /v1/responses takes: one reader and one validator see both."""

from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.grpc.chat_models import json_object
from chorus_cluster.gateway.grpc.responses.names import (
    EFFORTS,
    PHASES,
    ROLES,
    SERVICE_TIERS,
    TOOL_CHOICES,
    TRUNCATIONS,
    word,
)
from chorus_cluster.gateway.request import SAMPLING_FIELDS
from chorus_cluster.gateway.responses.parse import LOGPROBS, SEALED_REASONING, check_num_items, check_num_parts
from chorus_cluster.gateway.validate import check_size
from chorus_protos.v1 import responses_pb2 as pb

Body = dict[str, Any]

# Fields that both forms call by one name: those that may be unset, and those of which nothing is as good as that.
_OPTIONAL: Final = (
    "instructions",
    "store",
    "max_output_tokens",
    "top_logprobs",
    *SAMPLING_FIELDS,
    "top_k",
    "priority",
    "parallel_tool_calls",
    "max_tool_calls",
)
_PLAIN: Final = ("background", "previous_response_id", "prompt_cache_key", "safety_identifier", "user")


def body_from_pb(request: pb.CreateResponseRequest, *, stream: bool) -> Body:
    """Errors: InvalidRequest, with HTTP's field names, for JSON, and for what is too long to be looked at closely."""
    check_num_items(len(request.input))
    check_num_parts(sum(len(item.message.content) + len(item.reasoning.content) for item in request.input))
    check_size("tools", len(request.tools))
    body = {name: getattr(request, name) for name in _OPTIONAL if request.HasField(name)}
    body |= {name: value for name in _PLAIN if (value := getattr(request, name))}
    include = [LOGPROBS] if request.HasField("top_logprobs") else []
    include += [SEALED_REASONING] if request.include_encrypted_reasoning else []
    return body | {
        "model": request.model,
        "input": [_item(item, f"input[{i}]") for i, item in enumerate(request.input)],
        "stream": stream,
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)],
        "tool_choice": _tool_choice(request.tool_choice),
        "reasoning": {"effort": word(EFFORTS, request.reasoning_effort)},
        "text": {"format": _text_format(request.text_format)},
        "thinking_token_budget": request.max_reasoning_tokens if request.HasField("max_reasoning_tokens") else None,
        "include": include,
        "truncation": word(TRUNCATIONS, request.truncation),
        "metadata": dict(request.metadata),
        "logit_bias": {str(token_id): bias for token_id, bias in request.logit_bias.items()},
        "stop": list(request.stop),
        "service_tier": word(SERVICE_TIERS, request.service_tier),
    }


def _item(item: pb.ResponseItem, where: str) -> Body:
    kind = item.WhichOneof("item")
    if kind is None:
        raise InvalidRequest(where, "must hold an item of some type")
    if kind == "item_reference":
        return {"type": kind, "id": item.item_reference}
    body: Body = {"type": kind, "id": item.id or None}
    if kind == "message":
        role, phase = word(ROLES, item.message.role), word(PHASES, item.message.phase)
        return body | {"role": role, "phase": phase, "content": [_part(part) for part in item.message.content]}
    if kind == "reasoning":
        content = [_part(part) for part in item.reasoning.content]
        return body | {"content": content, "encrypted_content": item.reasoning.encrypted_content or None}
    held = getattr(item, kind)
    # The fields of the others are texts, and are called as in JSON.
    texts = {field.name: getattr(held, field.name) for field in held.DESCRIPTOR.fields}
    if "namespace" in texts:
        texts["namespace"] = texts["namespace"] or None
    return body | texts


def _part(part: pb.ContentPart) -> Body:
    kind = part.WhichOneof("part")
    if kind == "output_text":
        return {"type": kind, "text": part.output_text.text}
    return {"type": kind or "", "text": "" if kind is None else getattr(part, kind)}


def _tool(tool: pb.ResponseTool, where: str) -> Body:
    kind = tool.WhichOneof("tool")
    if kind is None:
        raise InvalidRequest(where, "must hold a function, a custom tool or a namespace")
    held = getattr(tool, kind)
    body: Body = {"type": kind, "name": held.name, "description": held.description or None}
    if kind == "function":
        text = tool.function.parameters_json
        parameters = json_object(text, f"{where}.parameters") if text else None
        return body | {"parameters": parameters, "strict": tool.function.strict}
    if kind == "namespace":
        return body | {"tools": [_tool(inner, f"{where}.tools[{i}]") for i, inner in enumerate(tool.namespace.tools)]}
    if not tool.custom.HasField("grammar"):
        return body
    grammar = tool.custom.grammar
    return body | {"format": {"type": "grammar", "syntax": grammar.syntax, "definition": grammar.definition}}


def _tool_choice(choice: pb.ResponseToolChoice) -> str | Body | None:
    kind = choice.WhichOneof("choice")
    if kind == "tool":
        return _tool_name(choice.tool)
    if kind == "allowed_tools":
        allowed = choice.allowed_tools
        return {
            "type": kind,
            "mode": _mode(allowed.mode) or "auto",
            "tools": [_tool_name(name) for name in allowed.tools],
        }
    return _mode(choice.mode)


def _mode(mode: int) -> str | None:
    name = word(TOOL_CHOICES, mode)
    if name == "":
        raise InvalidRequest("tool_choice", "must be auto, none or required")
    return name


def _tool_name(name: pb.ToolName) -> Body:
    kind = name.WhichOneof("name")
    return {
        "type": kind or "function",
        "name": None if kind is None else getattr(name, kind),
        "namespace": name.namespace or None,
    }


def _text_format(format: pb.TextFormat) -> Body | None:
    if format.json_object:
        return {"type": "json_object"}
    if not format.HasField("json_schema"):
        return None
    held = format.json_schema
    return {
        "type": "json_schema",
        "name": held.name,
        "schema": json_object(held.schema_json, "text.format.schema"),
        "description": held.description or None,
        "strict": held.strict if held.HasField("strict") else None,
    }
