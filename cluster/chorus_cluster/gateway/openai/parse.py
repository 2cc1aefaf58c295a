"""JSON body to `ChatRequest`: the way in for HTTP and for batch lines."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.openai.formats import (
    parse_priority,
    parse_response_format,
    parse_structured_outputs,
    parse_tool_choice,
)
from chorus_cluster.gateway.openai.models import (
    ChatCompletionBody,
    ChatMessage,
    ContentPart,
    FormattedBody,
    FunctionTool,
    GenerationBody,
    StreamOptions,
)
from chorus_cluster.gateway.request import SAMPLING_FIELDS, ChatRequest, OutputFormat
from chorus_cluster.gateway.validate import MAX_ELEMENTS, check_size
from chorus_cluster.harmony.conversation import Effort, Message, Role, Tool, ToolCall

Body = TypeVar("Body", bound=BaseModel)

# Twice what fits the longest context of gpt-oss, escaped and wrapped in messages. For gRPC messages too.
DEFAULT_MAX_BODY_BYTES = 4 * 2**20
# Of content parts and tool calls, in all messages together.
MAX_PARTS = 16384
# Of an unknown field's name that is shown to the client.
_MAX_SHOWN_PATH = 200


@dataclass(frozen=True, slots=True)
class ParsedBody:
    request: ChatRequest
    stream: bool
    include_usage: bool


def parse_json(body: bytes) -> Any:
    """Reads JSON. Malformed JSON or UTF-8, NaN, lone surrogates and nesting beyond 200 levels are InvalidRequest."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        # The parser's message tells what and where (line and column) and quotes nothing of the body.
        raise InvalidRequest(None, f"The request body is not valid JSON: {error}") from None


def parse_chat_body(value: Any) -> ParsedBody:
    """Turns the JSON value of a chat completion's body into a request.

    Errors: `InvalidRequest` for wrong types, unknown fields, and fields whose value is not served.
    """
    body = parse_body(value, ChatCompletionBody)
    _refuse_unserved(body)
    stream, include_usage = stream_flags(body.stream, body.stream_options)
    return ParsedBody(_to_chat_request(body), stream, include_usage)


def parse_body(value: Any, model: type[Body]) -> Body:
    """Checks a body's types. Errors: `InvalidRequest`."""
    if not isinstance(value, dict):
        raise InvalidRequest(None, "The request body must be a JSON object.")
    # null means absent, for fields that are not known either.
    value = {key: item for key, item in value.items() if item is not None}
    for name in value:
        if name not in model.model_fields:
            raise _unknown_field(name, model.model_fields)
    _check_bulk(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _to_invalid_request(error, value) from None


def stream_flags(stream: bool | None, options: StreamOptions | None) -> tuple[bool, bool]:
    """Whether to stream, and whether to end with the usage. Errors: `InvalidRequest`."""
    if options is not None and not stream:
        raise InvalidRequest("stream_options", "is only allowed with 'stream': true")
    return bool(stream), options is not None and bool(options.include_usage)


def _check_bulk(value: dict[str, Any]) -> None:
    """Refuses at a glance what would take long to check closely."""
    for name in MAX_ELEMENTS:
        if isinstance(value.get(name), list | dict):
            check_size(name, len(value[name]))
    messages = value.get("messages")
    num_parts = 0
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            parts = (message.get("content"), message.get("tool_calls"))
            num_parts += sum(len(part) for part in parts if isinstance(part, list))
    if num_parts > MAX_PARTS:
        raise InvalidRequest("messages", f"hold {num_parts} parts and tool calls; at most {MAX_PARTS} are allowed")


def _unknown_field(name: str, known: Iterable[str]) -> InvalidRequest:
    """The error for a field of a body that has the known ones."""
    name = name[:_MAX_SHOWN_PATH]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return InvalidRequest(name, f"is not a known field{hint}")


def _to_chat_request(body: ChatCompletionBody) -> ChatRequest:
    return ChatRequest(
        model=body.model,
        messages=tuple(_to_message(message, f"messages[{i}]") for i, message in enumerate(body.messages)),
        tools=tuple(_to_tool(tool) for tool in body.tools or ()),
        tool_choice=parse_tool_choice(body.tool_choice),
        output_format=output_format(body),
        max_reasoning_tokens=body.thinking_token_budget,
        effort=parse_effort(body.reasoning_effort),
        include_reasoning=body.include_reasoning is not False,
        max_tokens=_max_tokens(body),
        max_tokens_field="max_completion_tokens" if body.max_tokens is None else "max_tokens",
        top_logprobs=_top_logprobs(body),
        **sampling_fields(body),
    )


def output_format(body: FormattedBody) -> OutputFormat | None:
    """What the answer must be. Errors: `InvalidRequest`."""
    answer, structured = parse_response_format(body.response_format), parse_structured_outputs(body.structured_outputs)
    if answer is not None and structured is not None:
        raise InvalidRequest("structured_outputs", "is not allowed beside a 'response_format'")
    return answer or structured


def sampling_fields(body: GenerationBody) -> dict[str, Any]:
    """The fields of `Sampling` that all bodies spell alike; those that the client left out are left out.

    Errors: `InvalidRequest`.
    """
    fields = {name: value for name in (*SAMPLING_FIELDS, "n") if (value := getattr(body, name)) is not None}
    fields["priority"] = parse_priority(body.service_tier, body.priority)
    # vLLM's -1 is off.
    fields["top_k"] = 0 if body.top_k in (None, -1) else body.top_k
    fields["logit_bias"] = _logit_bias(body.logit_bias or {})
    fields["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return fields


def _to_message(message: ChatMessage, where: str) -> Message:
    if message.audio is not None:
        raise InvalidRequest(f"{where}.audio", "is not supported: gpt-oss speaks text alone")
    if message.function_call is not None:
        raise InvalidRequest(f"{where}.function_call", "is not supported; use 'tool_calls'")
    content = _text(message.content, f"{where}.content")
    if content is None and message.role == "assistant":
        content = message.refusal or ""
    if content is None:
        raise InvalidRequest(f"{where}.content", "is required")
    reasoning = message.reasoning if message.reasoning is not None else message.reasoning_content
    return Message(
        role=Role(message.role),
        content=content,
        reasoning=reasoning,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _text(content: str | list[ContentPart] | None, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type != "text":
            raise InvalidRequest(f"{where}[{i}].type", "must be 'text': gpt-oss reads text alone")
        if part.text is None:
            raise InvalidRequest(f"{where}[{i}].text", "is required")
    return "".join(part.text or "" for part in content)


def _to_tool(tool: FunctionTool) -> Tool:
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters,
        strict=bool(function.strict),
    )


def parse_effort(effort: str | None) -> Effort:
    try:
        return Effort.MEDIUM if effort is None else Effort(effort)
    except ValueError:
        raise InvalidRequest("reasoning_effort", "must be 'low', 'medium' or 'high': gpt-oss knows no other") from None


def _max_tokens(body: ChatCompletionBody) -> int | None:
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequest("max_tokens", "is an old name of 'max_completion_tokens': send one of them")
    return old if new is None else new


def _top_logprobs(body: ChatCompletionBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs", "is only allowed with 'logprobs': true")
    return None


def _logit_bias(biases: dict[str, float]) -> dict[int, float]:
    # At most 10 digits: more can't be a token id, and would be slow to convert.
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequest("logit_bias", f"has the key {key[:20]!r}; keys must be token ids, like '1734'")
    return {int(key): bias for key, bias in biases.items()}


def _refuse_unserved(body: ChatCompletionBody) -> None:
    """Refuses what would change the answer and is not served, so that nobody takes an answer for what it is not."""
    served: dict[str, tuple[Callable[[Any], bool], str]] = {
        "modalities": (lambda value: value == ["text"], "must be ['text']: gpt-oss speaks text alone"),
        "audio": (lambda value: False, "is not supported: gpt-oss speaks text alone"),
        "verbosity": (lambda value: value == "medium", "must be 'medium': gpt-oss knows no other"),
        "moderation": (lambda value: False, "is not supported"),
        "web_search_options": (lambda value: False, "is not supported"),
        "functions": (lambda value: value == [], "is not supported; use 'tools'"),
        "function_call": (lambda value: False, "is not supported; use 'tool_choice'"),
    }
    for name, (is_served, message) in served.items():
        value = getattr(body, name)
        if value is not None and not is_served(value):
            raise InvalidRequest(name, message)


_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}


def _to_invalid_request(error: ValidationError, value: Any) -> InvalidRequest:
    """The deepest of Pydantic's findings; where a field may have one of several types, all that it may have."""
    findings = [(_path(details, value), details) for details in error.errors(include_url=False)]
    path = max((path for path, _ in findings), key=lambda path: path.count(".") + path.count("["))
    found = [details for at, details in findings if at == path]
    kind = found[0]["type"]
    path = path[:_MAX_SHOWN_PATH]
    if kind == "missing":
        return InvalidRequest(path, "is required")
    if kind == "literal_error":
        return InvalidRequest(path, f"must be {found[0]['ctx']['expected']}")
    types = dict.fromkeys(_TYPES[details["type"]] for details in found if details["type"] in _TYPES)
    return InvalidRequest(path, f"must be {' or '.join(types)}" if types else "is invalid")


def _path(details: ErrorDetails, value: Any) -> str:
    """`messages[0].content`: Pydantic's location less the names of union branches, which are not in `value`."""
    path = ""
    location = details["loc"]
    for depth, part in enumerate(location):
        if isinstance(part, int) and isinstance(value, list):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and part in value:
            path, value = f"{path}.{part}" if path else str(part), value[part]
        elif depth == len(location) - 1 and details["type"] == "missing":
            path = f"{path}.{part}" if path else str(part)
    return path
