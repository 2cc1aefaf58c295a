"""JSON body to `ResponseRequest`."""

from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.openai.parse import MAX_PARTS, parse_body, parse_effort, sampling_fields
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.responses.guides import read_text_format, read_tool_choice
from chorus_cluster.gateway.responses.items import read_items
from chorus_cluster.gateway.responses.models import (
    ITEM_TYPES,
    MESSAGE,
    ReasoningOptions,
    ResponsesBody,
    TextOptions,
)
from chorus_cluster.gateway.responses.request import ResponseRequest
from chorus_cluster.gateway.responses.tools import read_tools
from chorus_cluster.gateway.validate import MAX_ELEMENTS
from chorus_cluster.harmony.conversation import Effort

LOGPROBS: Final = "message.output_text.logprobs"
SEALED_REASONING: Final = "reasoning.encrypted_content"
# What else may be included is of items that no response here has.
_INCLUDABLE: Final = (
    LOGPROBS,
    SEALED_REASONING,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
_MAX_METADATA: Final = 16
_MAX_KEY_LENGTH: Final = 64
_MAX_VALUE_LENGTH: Final = 512


def parse_response_body(value: Any) -> ResponseRequest:
    """Errors: `InvalidRequest` for wrong types, unknown fields, and fields whose value is not served."""
    _check_items(value)
    body = parse_body(value, ResponsesBody)
    _refuse_unserved(body)
    _check_metadata(body.metadata or {})
    toolbox = read_tools(body.tools or ())
    text = body.text or TextOptions()
    chat = ChatRequest(
        model=body.model,
        messages=(),
        tools=toolbox.tools,
        tool_choice=read_tool_choice(body.tool_choice, toolbox),
        output_format=read_text_format(text.format),
        effort=_effort(body),
        max_reasoning_tokens=body.thinking_token_budget,
        max_tokens=body.max_output_tokens,
        max_tokens_field="max_output_tokens",
        top_logprobs=_top_logprobs(body),
        **sampling_fields(body),
    )
    if body.background and body.store is False:
        raise InvalidRequest("background", "needs 'store': true, which keeps the response until it is asked for")
    return ResponseRequest(
        chat=chat,
        items=read_items(body.input),
        toolbox=toolbox,
        echo=_echo(body, chat, toolbox.shown),
        instructions=body.instructions,
        previous_id=body.previous_response_id,
        store=body.store,
        background=bool(body.background),
        stream=bool(body.stream),
        truncate=body.truncation == "auto",
        sealed_reasoning=SEALED_REASONING in (body.include or ()),
    )


def _check_items(value: Any) -> None:
    """Refuses at a glance what would take long to check closely, and items of a type that is not known here."""
    items = value.get("input") if isinstance(value, dict) else None
    if not isinstance(items, list):
        return
    check_num_items(len(items))
    num_parts = 0
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise InvalidRequest(f"input[{i}]", "must be an object")
        kind = item.get("type") or MESSAGE
        if kind not in ITEM_TYPES:
            shown = f"{kind[:50]!r} " if isinstance(kind, str) else ""
            known = ", ".join(ITEM_TYPES)
            raise InvalidRequest(f"input[{i}].type", f"{shown}is not supported; items are of these types: {known}")
        num_parts += sum(len(part) for part in (item.get("content"), item.get("output")) if isinstance(part, list))
    check_num_parts(num_parts)


def check_num_items(num_items: int) -> None:
    """Errors: InvalidRequest."""
    most = MAX_ELEMENTS["messages"]
    if num_items > most:
        raise InvalidRequest("input", f"holds {num_items} items; at most {most} are allowed")


def check_num_parts(num_parts: int) -> None:
    """Of all items together. Errors: InvalidRequest."""
    if num_parts > MAX_PARTS:
        raise InvalidRequest("input", f"holds {num_parts} parts; at most {MAX_PARTS} are allowed")


def _refuse_unserved(body: ResponsesBody) -> None:
    """Refuses what would change the answer and is not served, so that nobody takes an answer for what it is not."""
    reasoning, text = body.reasoning or ReasoningOptions(), body.text or TextOptions()
    # Field, value, the values that mean what is done anyway, and what is wrong with others.
    fields: tuple[tuple[str, Any, tuple[Any, ...], str], ...] = (
        ("conversation", body.conversation, (), "is not supported; use 'previous_response_id'"),
        ("prompt", body.prompt, (), "is not supported: there are no prompt templates here"),
        ("context_management", body.context_management, ([],), "is not supported; 'truncation': 'auto' is"),
        ("moderation", body.moderation, (), "is not supported"),
        ("n", body.n, (1,), "must be 1: a response is one answer"),
        ("reasoning.context", reasoning.context, ("auto", "current_turn"), "must be 'auto' or 'current_turn'"),
        ("reasoning.mode", reasoning.mode, ("standard",), "must be 'standard'"),
        ("text.verbosity", text.verbosity, ("medium",), "must be 'medium': gpt-oss knows no other"),
    )
    for name, value, served, reason in fields:
        if value is not None and value not in served:
            raise InvalidRequest(name, reason)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options", "is only allowed with 'stream': true")
    if body.max_tool_calls is not None and body.max_tool_calls < 1:
        raise InvalidRequest("max_tool_calls", "must be positive")
    for i, name in enumerate(body.include or ()):
        if name not in _INCLUDABLE:
            raise InvalidRequest(f"include[{i}]", f"must be one of {', '.join(_INCLUDABLE)}")


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise InvalidRequest("metadata", f"holds {len(metadata)} pairs; at most {_MAX_METADATA} are allowed")
    for key, text in metadata.items():
        if len(key) > _MAX_KEY_LENGTH or len(text) > _MAX_VALUE_LENGTH:
            raise InvalidRequest(
                "metadata", f"keys have at most {_MAX_KEY_LENGTH} characters, values {_MAX_VALUE_LENGTH}"
            )


def _effort(body: ResponsesBody) -> Effort:
    try:
        return parse_effort(None if body.reasoning is None else body.reasoning.effort)
    except InvalidRequest as error:
        raise InvalidRequest("reasoning.effort", str(error.args[1])) from None


def _top_logprobs(body: ResponsesBody) -> int | None:
    if LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs", f"is only allowed with {LOGPROBS!r} in 'include'")
    return None


def _echo(body: ResponsesBody, chat: ChatRequest, tools: list[dict[str, Any]]) -> dict[str, Any]:
    named = ("prompt_cache_key", "safety_identifier", "user")
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": chat.effort.value, "summary": None},
        "service_tier": "default" if body.service_tier in (None, "auto") else body.service_tier,
        "temperature": chat.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": chat.top_p,
        "truncation": body.truncation or "disabled",
        **{name: value for name in named if (value := getattr(body, name)) is not None},
    }
