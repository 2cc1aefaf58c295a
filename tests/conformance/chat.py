"""/v1/chat/completions: its parameters."""

from typing import Any

from openai.types.chat import ChatCompletionToolChoiceOptionParam
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
    ResponseFormat,
)
from tests.conformance.chat_door import DECLARED, DOOR, TOOL, prompt, prompt_of
from tests.conformance.chat_events import EVENTS, EXPECTED_EVENTS
from tests.conformance.chat_forms import FORMAT_ROWS, TOOL_ROWS
from tests.conformance.rows import Api, types_of, values_of
from tests.support.chat import TOOL_CALL

from chorus_cluster.gateway.openai.models import ChatCompletionBody

UNCHANGED = "changes nothing about the answer"


async def choices(**fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await DOOR.served(fields)).body["choices"]
    return found


def said(*messages: dict[str, Any], **fields: Any) -> Any:
    """The prompt of these messages."""
    return prompt(messages=list(messages), **fields)


async def model() -> bool:
    return (await DOOR.ask({"model": "gpt-9"})).status == 404


async def roles() -> bool:
    texts = {"system": "sss", "developer": "ddd", "user": "uuu", "assistant": "aaa"}
    shown = await said(*({"role": role, "content": text} for role, text in texts.items()))
    return all(text in shown for text in texts.values())


async def parts() -> bool:
    content = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    return "<|message|>one two<|end|>" in await said({"role": "user", "content": content})


async def tool_messages() -> bool:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":1}'}}
    shown = await said(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "22 C"},
        tools=[TOOL],
    )
    return all(text in shown for text in ("Let me see.", "to=functions.get_weather", '{"city":1}', "22 C"))


async def names() -> bool:
    return "ada" in await said({"role": "user", "name": "ada", "content": "Hi"})


async def tools() -> bool:
    reply = await DOOR.served({"tools": [TOOL]}, TOOL_CALL)
    (call,) = reply.body["choices"][0]["message"]["tool_calls"]
    return DECLARED in prompt_of(reply) and call["function"]["name"] == "get_weather"


async def efforts() -> bool:
    return all(
        [f"Reasoning: {effort}" in await prompt(reasoning_effort=effort) for effort in ("low", "medium", "high")]
    )


async def include_reasoning() -> bool:
    (shown,), (hidden,) = await choices(include_reasoning=True), await choices(include_reasoning=False)
    return "reasoning" in shown["message"] and "reasoning" not in hidden["message"]


async def several() -> bool:
    return [choice["index"] for choice in await choices(n=3)] == [0, 1, 2]


async def stop() -> bool:
    (choice,) = await choices(stop=["there"])
    return choice["message"]["content"] == "Hello " and choice["finish_reason"] == "stop"


async def logprobs() -> bool:
    (plain,), (choice,) = await choices(), await choices(logprobs=True)
    entries = choice["logprobs"]["content"]
    return plain["logprobs"] is None and len(entries) > 2 and not entries[0]["top_logprobs"]


async def top_logprobs() -> bool:
    (choice,) = await choices(logprobs=True, top_logprobs=2)
    return {len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]} == {2}


async def stream() -> bool:
    reply = await DOOR.served({"stream": True})
    return reply.is_done and {event["object"] for event in reply.events} == {"chat.completion.chunk"}


async def include_usage() -> bool:
    reply = await DOOR.served({"stream": True, "stream_options": {"include_usage": True}})
    *others, last = reply.events
    return (
        last["choices"] == [] and last["usage"]["total_tokens"] > 0 and {event["usage"] for event in others} == {None}
    )


async def priority_of(**fields: Any) -> int:
    (request,) = (await DOOR.served(fields)).requests
    return request.priority


async def service_tier() -> bool:
    tiers = ("priority", "auto", "default", "scale", "flex")
    first, *middle, last = [await priority_of(service_tier=tier) for tier in tiers]
    return first < 0 < last and middle == [0, 0, 0]


async def priority() -> bool:
    return await priority_of(priority=-5) == -5


async def modalities() -> bool:
    return (await DOOR.served({"modalities": ["text"]})).status == 200


async def verbosity() -> bool:
    return (await DOOR.served({"verbosity": "medium"})).status == 200


def wrong_part(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, kind: {}}]}]


S = DOOR.supported
PARAMETERS = [
    S("model", model, "another one is answered 404"),
    S("messages", roles, values="system, developer, user, assistant"),
    S("messages", tool_messages, "with `reasoning` beside `tool_calls`", "tool calls and their results"),
    S("messages", parts, values="content parts of type `text`"),
    S("messages", names, "shown to the model", "`name`"),
    *(
        DOOR.refused(
            "messages", wrong_part(kind), "gpt-oss reads text alone", f"`{kind}`", "messages[0].content[0].type"
        )
        for kind in ("image_url", "input_audio", "file")
    ),
    S("tools", tools, values="functions"),
    DOOR.refused("tools", [{"type": "custom", "custom": {"name": "f"}}], "functions only", "custom", "tools[0].type"),
    *TOOL_ROWS,
    S("reasoning_effort", efforts, values="`low`, `medium`, `high`"),
    *(
        DOOR.refused("reasoning_effort", effort, "gpt-oss knows three", f"`{effort}`")
        for effort in ("none", "minimal", "xhigh", "max")
    ),
    S("include_reasoning", include_reasoning, "ours: leaves `reasoning` out"),
    DOOR.sampled("max_completion_tokens", 9, max_tokens=9, note="reasoning included"),
    DOOR.sampled("max_tokens", 9, "the old name"),
    DOOR.sampled("temperature", 0.5),
    DOOR.sampled("top_p", 0.5),
    DOOR.sampled("top_k", 5, "as vLLM's"),
    DOOR.sampled("min_p", 0.25, "as vLLM's"),
    DOOR.sampled("frequency_penalty", 0.5),
    DOOR.sampled("presence_penalty", 0.5),
    DOOR.sampled("repetition_penalty", 1.5, "as vLLM's"),
    DOOR.sampled("seed", 7),
    DOOR.sampled("logit_bias", {"7": 5.0}, logit_bias={7: 5.0}),
    S("n", several),
    S("stop", stop),
    S("logprobs", logprobs, "of the answer's tokens"),
    S("top_logprobs", top_logprobs),
    S("stream", stream),
    S("stream_options", include_usage, values="`include_usage`"),
    DOOR.ignored(
        "stream_options",
        {"include_obfuscation": True},
        {"include_obfuscation": False},
        values="`include_obfuscation`",
        note="nothing is added to events",
        beside={"stream": True},
    ),
    *FORMAT_ROWS,
    S("service_tier", service_tier, "an order, no prices", "`priority`, `auto`, `default`, `scale`, `flex`"),
    DOOR.refused("service_tier", "fast", "there is no such tier", "`fast`"),
    S("priority", priority, "as vLLM's"),
    S("modalities", modalities, values="`text`"),
    DOOR.refused("modalities", ["text", "audio"], "gpt-oss speaks text alone", "`audio`"),
    S("verbosity", verbosity, values="`medium`"),
    *(DOOR.refused("verbosity", each, "gpt-oss knows no other", f"`{each}`") for each in ("low", "high")),
    DOOR.refused("audio", {"voice": "alloy", "format": "mp3"}, "gpt-oss speaks text alone"),
    DOOR.refused("web_search_options", {}, "nothing is searched here"),
    DOOR.refused("moderation", {"model": "omni-moderation-latest"}, "there is no such model here"),
    DOOR.refused("functions", [{"name": "f"}], "`tools` took its place"),
    DOOR.refused("function_call", "auto", "`tool_choice` took its place"),
    DOOR.ignored("metadata", {"a": "b"}, note=UNCHANGED),
    DOOR.ignored("parallel_tool_calls", True, False, note="gpt-oss calls one tool at a time"),
    DOOR.ignored("prediction", {"type": "content", "content": "x"}, note="would change the speed alone"),
    DOOR.ignored("prompt_cache_key", "x", note="equal beginnings are found without it"),
    DOOR.ignored("prompt_cache_options", {"mode": "explicit"}, note="equal beginnings are found without it"),
    DOOR.ignored("prompt_cache_retention", "24h", note="KV is kept while there is memory"),
    DOOR.ignored("safety_identifier", "x", note=UNCHANGED),
    DOOR.ignored("store", True, False, note="chat completions are not stored"),
    DOOR.ignored("user", "x", note=UNCHANGED),
]

CHAT = Api(
    DOOR.path,
    PARAMETERS,
    frozenset(ChatCompletionBody.model_fields)
    | frozenset(CompletionCreateParamsNonStreaming.__annotations__)
    | frozenset(CompletionCreateParamsStreaming.__annotations__),
    EVENTS,
    EXPECTED_EVENTS,
    {
        "tool_choice": types_of(ChatCompletionToolChoiceOptionParam),
        "response_format": types_of(ResponseFormat),
        "reasoning_effort": values_of(CompletionCreateParamsNonStreaming, "reasoning_effort"),
        "verbosity": values_of(CompletionCreateParamsNonStreaming, "verbosity"),
        "service_tier": values_of(CompletionCreateParamsNonStreaming, "service_tier"),
    },
)
