"""/v1/chat/completions: what its streams send."""

from collections.abc import Callable
from typing import Any, get_args

from openai.types.chat import ChatCompletionChunk
from openai.types.chat import chat_completion_chunk as chunk
from tests.conformance.rows import Door
from tests.support.chat import TOOL_CALL

from chorus_cluster.errors import RequestFailed

DOOR = Door("/v1/chat/completions", {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]})
FAILING = Door(DOOR.path, DOOR.body, failure=(5, RequestFailed()))
WITH_USAGE = {"stream_options": {"include_usage": True}}
WITH_LOGPROBS = {"logprobs": True}


def choice(is_it: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bool]:
    """Of an event's only choice."""
    return lambda event: bool(event.get("choices")) and bool(is_it(event["choices"][0]))


def delta(is_it: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bool]:
    return choice(lambda found: is_it(found["delta"]))


def tool_call(is_it: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], bool]:
    return delta(lambda found: found.get("tool_calls") and is_it(found["tool_calls"][0]))


def ends(reason: str) -> Callable[[dict[str, Any]], bool]:
    return choice(lambda found: found["finish_reason"] == reason)


async def _done() -> bool:
    return (await DOOR.served({"stream": True})).is_done


async def _error() -> bool:
    *others, last = (await FAILING.served({"stream": True})).events
    return bool(others) and last["error"]["code"] == "request_failed"


TEXT_ALONE = "gpt-oss writes text alone"
EVENTS = [
    DOOR.sent("id", {}, lambda event: event["id"].startswith("chatcmpl-")),
    DOOR.sent("object", {}, lambda event: event["object"] == "chat.completion.chunk"),
    DOOR.sent("created", {}, lambda event: event["created"] > 0),
    DOOR.sent("model", {}, lambda event: event["model"] == "fake-model"),
    DOOR.sent("choices", {}, lambda event: len(event["choices"]) == 1),
    DOOR.sent("choices.index", {"n": 2}, choice(lambda found: found["index"] == 1)),
    DOOR.sent("choices.delta", {}, choice(lambda found: "delta" in found)),
    DOOR.sent("choices.delta.role", {}, delta(lambda found: found.get("role") == "assistant"), "in the first"),
    DOOR.sent("choices.delta.reasoning", {}, delta(lambda found: found.get("reasoning")), "ours"),
    DOOR.sent("choices.delta.content", {}, delta(lambda found: found.get("content"))),
    DOOR.sent("choices.delta.tool_calls", {}, tool_call(lambda found: found["index"] == 0), script=TOOL_CALL),
    DOOR.sent("choices.delta.tool_calls.index", {}, tool_call(lambda found: "index" in found), script=TOOL_CALL),
    DOOR.sent("choices.delta.tool_calls.id", {}, tool_call(lambda found: found.get("id")), "once", TOOL_CALL),
    DOOR.sent("choices.delta.tool_calls.type", {}, tool_call(lambda found: found.get("type")), "once", TOOL_CALL),
    DOOR.sent(
        "choices.delta.tool_calls.function",
        {},
        tool_call(lambda found: found["function"].get("arguments")),
        "the name once, arguments in pieces",
        TOOL_CALL,
    ),
    DOOR.sent("choices.logprobs", WITH_LOGPROBS, choice(lambda found: found["logprobs"])),
    DOOR.sent("choices.finish_reason", {}, choice(lambda found: found["finish_reason"])),
    DOOR.sent("choices.finish_reason: stop", {}, ends("stop")),
    DOOR.sent("choices.finish_reason: length", {"max_tokens": 4}, ends("length")),
    DOOR.sent("choices.finish_reason: tool_calls", {}, ends("tool_calls"), script=TOOL_CALL),
    DOOR.sent("usage", WITH_USAGE, lambda event: event["usage"] and not event["choices"], "in the last"),
    DOOR.supported("error", _error, "an event of its own, before the end"),
    DOOR.supported("[DONE]", _done, "the end"),
    DOOR.never_sent("choices.delta.audio", delta(lambda found: "audio" in found), TEXT_ALONE),
    DOOR.never_sent("choices.delta.refusal", delta(lambda found: "refusal" in found), "gpt-oss refuses in its answer"),
    DOOR.never_sent("choices.delta.function_call", delta(lambda found: "function_call" in found), "long replaced"),
    DOOR.never_sent("choices.finish_reason: content_filter", ends("content_filter"), "nothing is filtered"),
    DOOR.never_sent("choices.finish_reason: function_call", ends("function_call"), "long replaced"),
    DOOR.never_sent("moderation", lambda event: "moderation" in event, "nothing is moderated"),
    DOOR.never_sent("obfuscation", lambda event: "obfuscation" in event, "TLS is the operator's affair"),
    DOOR.never_sent("service_tier", lambda event: "service_tier" in event, "the tier is an order here, and no news"),
    DOOR.never_sent("system_fingerprint", lambda event: "system_fingerprint" in event, "nothing would follow from it"),
]


def _fields(model: Any, prefix: str = "") -> set[str]:
    return {prefix + name for name in model.model_fields}


_REASONS = get_args(get_args(chunk.Choice.model_fields["finish_reason"].annotation)[0])
EXPECTED_EVENTS = frozenset(
    _fields(ChatCompletionChunk)
    | _fields(chunk.Choice, "choices.")
    | _fields(chunk.ChoiceDelta, "choices.delta.")
    | _fields(chunk.ChoiceDeltaToolCall, "choices.delta.tool_calls.")
    | {f"choices.finish_reason: {reason}" for reason in _REASONS}
    # Not of that type: ours, and what ends a stream.
    | {"choices.delta.reasoning", "error", "[DONE]"}
)
