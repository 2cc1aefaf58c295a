"""/v1/completions: its parameters, and what its streams send."""

import json
from typing import Any, get_args

from openai.types import Completion
from openai.types.completion_choice import CompletionChoice
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming
from tests.conformance.chat_events import choice, ends
from tests.conformance.chat_forms import SCHEMA, STRUCTURED
from tests.conformance.rows import Api, Door
from tests.support.chat import encode

from chorus_cluster.errors import RequestFailed
from chorus_cluster.gateway.openai.completions import CompletionBody
from chorus_protos.v1 import engine_pb2

DOOR = Door(
    "/v1/completions", {"model": "fake-model", "prompt": "Hi", "max_tokens": 100, "seed": 1}, "One two.<|return|>"
)
FAILING = Door(DOOR.path, DOOR.body, failure=(5, RequestFailed()))


async def texts(script: str | None = None, **fields: Any) -> list[str]:
    return [found["text"] for found in (await DOOR.served(fields, script)).body["choices"]]


async def asked(prompt: Any) -> list[list[int]]:
    return [list(request.prompt_token_ids) for request in (await DOOR.served({"prompt": prompt})).requests]


async def model() -> bool:
    return (await DOOR.ask({"model": "gpt-9"})).status == 404


async def prompt_texts() -> bool:
    return await asked("<|start|>Hi") == [encode("<|start|>Hi")] and len(await asked(["a", "b"])) == 2


async def prompt_ids() -> bool:
    return await asked([1, 2]) == [[1, 2]] and await asked([[1], [2]]) == [[1], [2]]


async def max_tokens() -> bool:
    return [(await DOOR.served({"max_tokens": each})).requests[0].max_tokens for each in (None, 9)] == [16, 9]


async def n() -> bool:
    return len(await texts(n=3)) == 3


async def stop() -> bool:
    return await texts(stop=" two") == ["One"]


async def logprobs() -> bool:
    (found,) = (await DOOR.served({"logprobs": 2})).body["choices"]
    return "".join(found["logprobs"]["tokens"]) == "One two."


async def echo() -> bool:
    return await texts(echo=True) == ["HiOne two."]


async def skip_special_tokens() -> bool:
    shown = "<|message|>Hi<|return|>"
    return await texts(shown) == ["Hi"] and await texts(shown, skip_special_tokens=False) == ["<|message|>Hi"]


async def guide(**fields: Any) -> engine_pb2.Guide:
    """What holds the answer to its form: one text, without headers."""
    (request,) = (await DOOR.served(fields)).requests
    assert not any(message.header for message in request.guide.messages)
    return request.guide


async def text_format() -> bool:
    return not (await guide(response_format={"type": "text"})).messages


async def json_object() -> bool:
    (grammar,) = (await guide(response_format={"type": "json_object"})).grammars
    return json.loads(grammar.json_schema) == {"type": "object"}


async def json_schema() -> bool:
    asked = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    reply = await DOOR.served({"response_format": asked})
    (request,) = reply.requests
    (grammar,) = request.guide.grammars
    return json.loads(grammar.json_schema) == SCHEMA and list(request.prompt_token_ids) == encode("Hi")


async def structured_outputs() -> bool:
    held = [(await guide(structured_outputs={kind: form})).grammars for kind, form in STRUCTURED.items()]
    return all(len(grammars) == 1 for grammars in held)


async def stream() -> bool:
    reply = await DOOR.served({"stream": True})
    return reply.is_done and "".join(event["choices"][0]["text"] for event in reply.events) == "One two."


async def include_usage() -> bool:
    last = (await DOOR.served({"stream": True, "stream_options": {"include_usage": True}})).events[-1]
    return last["choices"] == [] and last["usage"]["total_tokens"] > 0


async def best_of_n() -> bool:
    return len(await texts(n=2, best_of=2)) == 2


async def service_tier() -> bool:
    return (await DOOR.served({"service_tier": "priority"})).requests[0].priority < 0


async def priority() -> bool:
    return (await DOOR.served({"priority": 3})).requests[0].priority == 3


async def _error() -> bool:
    *others, last = (await FAILING.served({"stream": True})).events
    return bool(others) and last["error"]["code"] == "request_failed"


S = DOOR.supported
PARAMETERS = [
    S("model", model, "another one is answered 404"),
    S("prompt", prompt_texts, "names of special tokens stand for these", "a text, or several"),
    S("prompt", prompt_ids, values="token ids, or several lists of them"),
    S("max_tokens", max_tokens, "16 by default"),
    DOOR.sampled("temperature", 0.5),
    DOOR.sampled("top_p", 0.5),
    DOOR.sampled("top_k", 5, "as vLLM's"),
    DOOR.sampled("min_p", 0.25, "as vLLM's"),
    DOOR.sampled("frequency_penalty", 0.5),
    DOOR.sampled("presence_penalty", 0.5),
    DOOR.sampled("repetition_penalty", 1.5, "as vLLM's"),
    DOOR.sampled("seed", 7),
    DOOR.sampled("logit_bias", {"7": 5.0}, logit_bias={7: 5.0}),
    S("n", n),
    S("stop", stop),
    S("logprobs", logprobs),
    S("echo", echo),
    DOOR.refused("echo", True, "a prompt's tokens have none here", "beside `logprobs`", beside={"logprobs": 1}),
    S("skip_special_tokens", skip_special_tokens, "as vLLM's"),
    S("response_format", text_format, values="`text`"),
    S("response_format", json_object, values="`json_object`"),
    S("response_format", json_schema, "the model is not shown the schema", "`json_schema`"),
    S("structured_outputs", structured_outputs, "as vLLM's", "`json`, `json_object`, `regex`, `choice`, `grammar`"),
    S("stream", stream),
    S("stream_options", include_usage, values="`include_usage`"),
    DOOR.ignored(
        "stream_options",
        {"include_obfuscation": True},
        values="`include_obfuscation`",
        note="nothing is added to events",
        beside={"stream": True},
    ),
    S("best_of", best_of_n, values="as `n`"),
    DOOR.refused("best_of", 3, "answers are not ranked", "more than `n`"),
    DOOR.ignored("suffix", "", values="empty", note="it is none"),
    DOOR.refused("suffix", ".", "gpt-oss only goes on", "others"),
    S("service_tier", service_tier, "as in chat completions"),
    S("priority", priority, "as vLLM's"),
    DOOR.ignored("add_special_tokens", True, False, note="gpt-oss has none to add"),
    DOOR.ignored("user", "x", note="changes nothing about the answer"),
]
EVENTS = [
    DOOR.sent("id", {}, lambda event: event["id"].startswith("cmpl-")),
    DOOR.sent("object", {}, lambda event: event["object"] == "text_completion"),
    DOOR.sent("created", {}, lambda event: event["created"] > 0),
    DOOR.sent("model", {}, lambda event: event["model"] == "fake-model"),
    DOOR.sent("choices", {}, lambda event: len(event["choices"]) == 1),
    DOOR.sent("choices.index", {"n": 2}, choice(lambda found: found["index"] == 1)),
    DOOR.sent("choices.text", {}, choice(lambda found: found["text"])),
    DOOR.sent("choices.logprobs", {"logprobs": 1}, choice(lambda found: found["logprobs"])),
    DOOR.sent("choices.finish_reason", {}, choice(lambda found: found["finish_reason"])),
    DOOR.sent("choices.finish_reason: stop", {}, ends("stop")),
    DOOR.sent("choices.finish_reason: length", {"max_tokens": 1}, ends("length")),
    DOOR.sent("usage", {"stream_options": {"include_usage": True}}, lambda event: event["usage"], "in the last"),
    S("error", _error, "an event of its own, before the end"),
    S("[DONE]", stream, "the end"),
    DOOR.never_sent("choices.finish_reason: content_filter", ends("content_filter"), "nothing is filtered"),
    DOOR.never_sent("system_fingerprint", lambda event: "system_fingerprint" in event, "nothing would follow from it"),
]

COMPLETIONS = Api(
    DOOR.path,
    PARAMETERS,
    frozenset(CompletionBody.model_fields)
    | frozenset(CompletionCreateParamsNonStreaming.__annotations__)
    | frozenset(CompletionCreateParamsStreaming.__annotations__),
    EVENTS,
    frozenset(Completion.model_fields)
    | frozenset(f"choices.{name}" for name in CompletionChoice.model_fields)
    | frozenset(
        f"choices.finish_reason: {reason}"
        for reason in get_args(CompletionChoice.model_fields["finish_reason"].annotation)
    )
    | {"error", "[DONE]"},
)
