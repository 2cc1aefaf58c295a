"""/v1/responses: its parameters."""

from typing import Any, get_args

from openai.types.responses import ResponseIncludable
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from tests.conformance.responses_door import DOOR, guide, keeper, output, prompt
from tests.conformance.responses_events import EVENTS, EXPECTED_EVENTS
from tests.conformance.responses_items import EXPECTED_VALUES, ITEM_ROWS
from tests.conformance.responses_tools import EXPECTED_CHOICES, EXPECTED_FORMATS, EXPECTED_TOOLS, TEXT_ROWS, TOOL_ROWS
from tests.conformance.rows import Api, Row, values_of

from chorus_cluster.gateway.responses.models import ResponsesBody

LOGPROBS, SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"
TOO_LONG = [{"role": "user", "content": f"{i}" + " a" * 1000} for i in range(6)]


async def model() -> bool:
    return (await DOOR.ask({"model": "gpt-9"})).status == 404


async def instructions() -> bool:
    return "<|start|>developer<|message|># Instructions\n\nBe brief." in await prompt(instructions="Be brief.")


async def previous_response() -> bool:
    async with keeper() as kept:
        first = await kept.create()
        second = await kept.create(input="And now?", previous_response_id=first["id"])
        shown = kept.prompt()
    return "Hello there, friend." in shown and "And now?" in shown and second["previous_response_id"] == first["id"]


async def store() -> bool:
    async with keeper() as kept:
        ids = [(await kept.create(store=each))["id"] for each in (None, True, False)]
        return [(await kept.http.get(f"/v1/responses/{id}")).status_code for id in ids] == [200, 200, 404]


async def background() -> bool:
    async with keeper() as kept:
        created = await kept.create(background=True)
        page = await kept.http.get(f"/v1/responses/{created['id']}")
        refused = await kept.post(background=True, store=False)
    return (created["status"], page.status_code, refused.status_code) == ("queued", 200, 400)


async def efforts() -> bool:
    return all(
        [f"Reasoning: {effort}" in await prompt(reasoning={"effort": effort}) for effort in ("low", "medium", "high")]
    )


async def contexts() -> bool:
    """What is done anyway."""
    plain = await prompt()
    wanted: list[dict[str, Any]] = [{"context": "auto"}, {"context": "current_turn"}, {"mode": "standard"}]
    return [await prompt(reasoning=each) for each in wanted] == [plain] * 3


async def thinking_token_budget() -> bool:
    return (await guide(thinking_token_budget=9)).max_reasoning_tokens == 9


async def logprobs() -> bool:
    (plain, *_), (part, *_) = (
        (await output())[-1]["content"],
        (await output(include=[LOGPROBS], top_logprobs=0))[-1]["content"],
    )
    entries = part["logprobs"]
    return plain["logprobs"] == [] and len(entries) > 2 and not entries[0]["top_logprobs"]


async def top_logprobs() -> bool:
    (part,) = (await output(include=[LOGPROBS], top_logprobs=2))[-1]["content"]
    alone = await DOOR.ask({"top_logprobs": 2})
    return {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2} and alone.status == 400


async def sealed() -> bool:
    (plain, *_), (made, *_) = await output(), await output(include=[SEALED])
    return "encrypted_content" not in plain and bool(made["encrypted_content"])


async def stop() -> bool:
    return (await output(stop="there"))[-1]["content"][0]["text"] == "Hello "


async def one() -> bool:
    return (await DOOR.served({"n": 1})).status == 200


async def priority_of(**fields: Any) -> int:
    (request,) = (await DOOR.served(fields)).requests
    return request.priority


async def service_tier() -> bool:
    tiers = ("priority", "auto", "default", "scale", "flex")
    first, *middle, last = [await priority_of(service_tier=tier) for tier in tiers]
    return first < 0 < last and middle == [0, 0, 0]


async def priority() -> bool:
    return await priority_of(priority=-5) == -5


async def stream() -> bool:
    reply = await DOOR.served({"stream": True})
    numbers = [event["sequence_number"] for event in reply.events]
    return numbers == [*range(len(numbers))] and not reply.is_done


async def truncation() -> bool:
    refused, cut = await DOOR.ask({"input": TOO_LONG}), await prompt(input=TOO_LONG, truncation="auto")
    same = await DOOR.ask({"input": TOO_LONG, "truncation": "disabled"})
    is_cut = "<|message|>0 a" not in cut and "<|message|>5 a" in cut
    return is_cut and refused.status == same.status == 400


async def metadata() -> bool:
    return (await DOOR.served({"metadata": {"a": "b"}})).body["metadata"] == {"a": "b"}


def refused_reasoning(name: str, *values: str, note: str) -> list[Row]:
    return [DOOR.refused("reasoning", {name: value}, note, f"{name} {value}", f"reasoning.{name}") for value in values]


S = DOOR.supported
GIVEN_BACK = "given back, and changes nothing"
CACHED = "equal beginnings are found without it"
NO_SUCH_ITEMS = "no response here has such items"
PARAMETERS = [
    S("model", model, "another one is answered 404"),
    *ITEM_ROWS,
    S("instructions", instructions, "not handed on to the next response"),
    S("previous_response_id", previous_response, "needs the store"),
    S("store", store, "true by default, where the server has a store"),
    S("background", background, "needs the store"),
    *TOOL_ROWS,
    S("reasoning", efforts, values="effort low, medium, high"),
    *refused_reasoning("effort", "none", "minimal", "xhigh", "max", note="gpt-oss knows three"),
    S("reasoning", contexts, "which is done anyway", "context auto, current_turn; mode standard"),
    *refused_reasoning("context", "all_turns", note="gpt-oss was not made to read old reasoning"),
    *refused_reasoning("mode", "pro", note="there is no such model here"),
    *(
        DOOR.ignored("reasoning", {name: "auto"}, {name: "detailed"}, values=name, note="the reasoning itself is sent")
        for name in ("summary", "generate_summary")
    ),
    S("thinking_token_budget", thinking_token_budget, "as vLLM's: most tokens of reasoning"),
    *TEXT_ROWS,
    S("include", logprobs, values=f"`{LOGPROBS}`"),
    S("include", sealed, "encoded, not encrypted", f"`{SEALED}`"),
    *(
        DOOR.ignored("include", [name], values=f"`{name}`", note=NO_SUCH_ITEMS)
        for name in get_args(ResponseIncludable)
        if name not in (LOGPROBS, SEALED)
    ),
    S("top_logprobs", top_logprobs, f"only with `{LOGPROBS}`"),
    DOOR.sampled("max_output_tokens", 9, max_tokens=9, note="reasoning included"),
    DOOR.sampled("temperature", 0.5),
    DOOR.sampled("top_p", 0.5),
    DOOR.sampled("top_k", 5, "ours, as in chat completions"),
    DOOR.sampled("min_p", 0.25, "ours"),
    DOOR.sampled("frequency_penalty", 0.5, "ours"),
    DOOR.sampled("presence_penalty", 0.5, "ours"),
    DOOR.sampled("repetition_penalty", 1.5, "ours"),
    DOOR.sampled("seed", 7, "ours"),
    DOOR.sampled("logit_bias", {"7": 5.0}, "ours", logit_bias={7: 5.0}),
    S("stop", stop, "ours"),
    S("n", one, values="1"),
    DOOR.refused("n", 2, "a response is one answer", "more"),
    S("stream", stream, "numbered events, without `[DONE]`"),
    DOOR.ignored(
        "stream_options",
        {"include_obfuscation": True},
        {"include_obfuscation": False},
        values="include_obfuscation",
        note="nothing is added to events",
        beside={"stream": True},
    ),
    S("truncation", truncation, "the oldest items are left out", "auto, disabled"),
    S("service_tier", service_tier, "an order, no prices", "`priority`, `auto`, `default`, `scale`, `flex`"),
    *(DOOR.refused("service_tier", tier, "there is no such tier", f"`{tier}`") for tier in ("fast", "ultrafast")),
    S("priority", priority, "ours"),
    S("metadata", metadata, "given back"),
    DOOR.refused("conversation", "conv_1", "`previous_response_id` does it"),
    DOOR.refused("prompt", {"id": "pmpt_1"}, "there are no prompt templates here"),
    DOOR.refused("context_management", [{"type": "compaction"}], "`truncation` leaves out what is too long"),
    DOOR.refused("moderation", {"model": "omni-moderation-latest"}, "there is no such model here"),
    DOOR.refused("access_programs", {}, "there are none here"),
    DOOR.refused("image", {}, "gpt-oss reads and writes text alone"),
    DOOR.ignored("max_tool_calls", 1, note="of tools that run here, of which there are none"),
    DOOR.ignored("parallel_tool_calls", True, False, note="gpt-oss calls one tool at a time"),
    DOOR.ignored("background_options", {"completion_window": "8h"}, note="the background has no windows of time"),
    DOOR.ignored("client_metadata", {"a": "b"}, note="Codex sends it"),
    DOOR.ignored("prompt_cache_key", "x", note=CACHED),
    DOOR.ignored("prompt_cache_options", {"mode": "explicit"}, note=CACHED),
    DOOR.ignored("prompt_cache_retention", "24h", note="KV is kept while there is memory"),
    DOOR.ignored("safety_identifier", "x", note=GIVEN_BACK),
    DOOR.ignored("user", "x", note=GIVEN_BACK),
]

RESPONSES = Api(
    DOOR.path,
    PARAMETERS,
    frozenset(ResponsesBody.model_fields)
    | frozenset(ResponseCreateParamsNonStreaming.__annotations__)
    | frozenset(ResponseCreateParamsStreaming.__annotations__),
    EVENTS,
    EXPECTED_EVENTS,
    {
        "input": EXPECTED_VALUES,
        "tools": EXPECTED_TOOLS,
        "tool_choice": EXPECTED_CHOICES,
        "include": frozenset(get_args(ResponseIncludable)),
        "text": EXPECTED_FORMATS,
        "service_tier": values_of(ResponseCreateParamsNonStreaming, "service_tier"),
    },
)
