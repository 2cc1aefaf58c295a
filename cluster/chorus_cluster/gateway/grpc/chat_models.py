"""`chorus.v1` chat messages to and from what the gateway works with."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.choices import total
from chorus_cluster.gateway.completion import Completion
from chorus_cluster.gateway.openai.formats import json_schema_format, parse_structured_outputs
from chorus_cluster.gateway.openai.parse import parse_json
from chorus_cluster.gateway.request import SAMPLING_FIELDS, ChatRequest, OutputFormat, ToolChoice
from chorus_cluster.harmony.conversation import Effort, Message, Role, Tool, ToolCall
from chorus_protos.v1 import chat_pb2, completion_pb2

_ROLES = {
    chat_pb2.ROLE_SYSTEM: Role.SYSTEM,
    chat_pb2.ROLE_DEVELOPER: Role.DEVELOPER,
    chat_pb2.ROLE_USER: Role.USER,
    chat_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    chat_pb2.ROLE_TOOL: Role.TOOL,
}
_EFFORTS = {
    chat_pb2.REASONING_EFFORT_UNSPECIFIED: Effort.MEDIUM,
    chat_pb2.REASONING_EFFORT_LOW: Effort.LOW,
    chat_pb2.REASONING_EFFORT_MEDIUM: Effort.MEDIUM,
    chat_pb2.REASONING_EFFORT_HIGH: Effort.HIGH,
}
_TOOL_CHOICES: "dict[int, Literal['auto', 'none', 'required']]" = {
    chat_pb2.TOOL_CHOICE_UNSPECIFIED: "auto",
    chat_pb2.TOOL_CHOICE_AUTO: "auto",
    chat_pb2.TOOL_CHOICE_NONE: "none",
    chat_pb2.TOOL_CHOICE_REQUIRED: "required",
}
_FINISH_REASONS: "dict[ev.FinishReason, chat_pb2.ChatFinishReason.ValueType]" = {
    "stop": chat_pb2.CHAT_FINISH_REASON_STOP,
    "length": chat_pb2.CHAT_FINISH_REASON_LENGTH,
    "tool_calls": chat_pb2.CHAT_FINISH_REASON_TOOL_CALLS,
}


def request_from_pb(pb: chat_pb2.ChatCompletionRequest) -> ChatRequest:
    """Converts a request.

    Errors: `InvalidRequest`, with OpenAI's field names, for enum values and JSON that protobuf doesn't check.
    """
    if pb.reasoning_effort not in _EFFORTS:
        raise InvalidRequest("reasoning_effort", "must be low, medium or high")
    if pb.tool_choice not in _TOOL_CHOICES:
        raise InvalidRequest("tool_choice", "must be auto, none or required")
    return ChatRequest(
        model=pb.model,
        messages=tuple(_message(message, i) for i, message in enumerate(pb.messages)),
        tools=tuple(_tool(tool, i) for i, tool in enumerate(pb.tools)),
        tool_choice=ToolChoice(_TOOL_CHOICES[pb.tool_choice], tuple(pb.allowed_tools)),
        output_format=output_format_from_pb(pb.output_format),
        max_reasoning_tokens=pb.max_reasoning_tokens if pb.HasField("max_reasoning_tokens") else None,
        effort=_EFFORTS[pb.reasoning_effort],
        include_reasoning=pb.include_reasoning if pb.HasField("include_reasoning") else True,
        max_tokens=pb.max_completion_tokens if pb.HasField("max_completion_tokens") else None,
        top_logprobs=pb.top_logprobs if pb.HasField("top_logprobs") else None,
        **sampling_from_pb(pb),
    )


def sampling_from_pb(pb: chat_pb2.ChatCompletionRequest | completion_pb2.CompletionRequest) -> dict[str, Any]:
    """The fields of `Sampling` that both requests spell alike; those that the client left out are left out."""
    fields = {name: getattr(pb, name) for name in (*SAMPLING_FIELDS, "top_k", "n") if pb.HasField(name)}
    return fields | {"logit_bias": dict(pb.logit_bias), "stop": tuple(pb.stop), "priority": pb.priority}


def _message(pb: chat_pb2.ChatMessage, index: int) -> Message:
    role = _ROLES.get(pb.role)
    if role is None:
        raise InvalidRequest(f"messages[{index}].role", "must be 'system', 'developer', 'user', 'assistant' or 'tool'")
    return Message(
        role=role,
        content=pb.content,
        reasoning=pb.reasoning or None,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in pb.tool_calls),
        tool_call_id=pb.tool_call_id or None,
        name=pb.name or None,
    )


def _tool(pb: chat_pb2.FunctionTool, index: int) -> Tool:
    parameters = None
    if pb.parameters_json:
        parameters = json_object(pb.parameters_json, f"tools[{index}].function.parameters")
    return Tool(pb.name, pb.description, parameters, pb.strict)


def json_object(text: str, field: str) -> dict[str, Any]:
    """The object that a field holds as JSON text. Errors: InvalidRequest."""
    try:
        value = parse_json(text.encode())
    except InvalidRequest:
        raise InvalidRequest(field, "is not valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidRequest(field, "must be an object")
    return value


def output_format_from_pb(pb: chat_pb2.OutputFormat) -> OutputFormat | None:
    """Errors: `InvalidRequest`, with the names of OpenAI's and vLLM's fields."""
    kind = pb.WhichOneof("format")
    if kind == "json_schema":
        field = "response_format.json_schema"
        schema = json_object(pb.json_schema.schema_json, f"{field}.schema")
        if not pb.json_schema.name:
            return OutputFormat("json_schema", pb.json_schema.schema_json, f"{field}.schema")
        named = {"name": pb.json_schema.name, "schema": schema, "description": pb.json_schema.description}
        return json_schema_format(named, field)
    if kind == "json_object":
        return parse_structured_outputs({"json_object": True}) if pb.json_object else None
    if kind == "choice":
        return parse_structured_outputs({"choice": list(pb.choice.texts)})
    if kind is None:
        return None
    return parse_structured_outputs({"regex": pb.regex} if kind == "regex" else {"grammar": pb.lark})


def completion_to_pb(completions: Sequence[Completion]) -> chat_pb2.ChatCompletionResponse:
    """The response of one request's answers."""
    choices = [_choice(completion) for completion in completions]
    first = completions[0]
    return chat_pb2.ChatCompletionResponse(
        id=first.id,
        created=first.created,
        model=first.model,
        message=choices[0].message,
        finish_reason=choices[0].finish_reason,
        logprobs=choices[0].logprobs,
        usage=usage_to_pb(total([completion.finished.usage for completion in completions])),
        choices=choices if len(choices) > 1 else (),
    )


def _choice(completion: Completion) -> chat_pb2.ChatChoice:
    return chat_pb2.ChatChoice(
        message=chat_pb2.ChatMessage(
            role=chat_pb2.ROLE_ASSISTANT,
            content=completion.content or "",
            reasoning=completion.reasoning or "",
            tool_calls=[
                chat_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
                for call in completion.tool_calls
            ],
        ),
        finish_reason=_FINISH_REASONS[completion.finished.reason],
        logprobs=map(logprob_to_pb, completion.logprobs),
    )


def add_events(chunk: chat_pb2.ChatCompletionChunk, events: Iterable[ev.Event], choice: int | None = None) -> None:
    """Adds the deltas of some events, in order. Log probabilities follow the text that they belong to.

    This runs for every message of every stream; deltas that are made in their place are not copied there.

    `choice`: which of several answers they belong to; their usage is left to the caller then.
    """
    deltas = chunk.deltas
    for event in events:
        if isinstance(event, ev.Answer):
            if event.text:
                deltas.add(content=event.text)
            for entry in event.logprobs:
                deltas.add(logprob=logprob_to_pb(entry))
        elif isinstance(event, ev.Reasoning):
            deltas.add(reasoning=event.text)
        elif isinstance(event, ev.ToolCallArguments):
            deltas.add(tool_call=chat_pb2.ToolCallDelta(index=event.index, arguments=event.text))
        elif isinstance(event, ev.ToolCallStart):
            deltas.add(tool_call=chat_pb2.ToolCallDelta(index=event.index, id=event.id, name=event.name))
        else:
            deltas.add(finish_reason=_FINISH_REASONS[event.reason])
            if choice is None:
                deltas.add(usage=usage_to_pb(event.usage))
    if choice:
        for delta in deltas:
            delta.choice = choice


def usage_to_pb(usage: ev.Usage) -> chat_pb2.Usage:
    return chat_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def logprob_to_pb(entry: ev.Logprob) -> chat_pb2.ContentLogprob:
    return chat_pb2.ContentLogprob(sampled=_candidate(entry.sampled), top=map(_candidate, entry.top))


def _candidate(candidate: ev.Candidate) -> chat_pb2.TokenLogprobEntry:
    return chat_pb2.TokenLogprobEntry(
        token=candidate.text, logprob=candidate.logprob, token_bytes=candidate.token_bytes
    )
