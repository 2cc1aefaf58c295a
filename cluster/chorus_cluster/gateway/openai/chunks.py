"""What a stream's events hold, for the OpenAPI pages. `sse.py` and `completions.py` write them."""

from typing import Any, Literal

from pydantic import BaseModel

from chorus_cluster.gateway.openai.models import ChoiceLogprobs, Usage


class CallFunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """The first of a call has its id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CallFunctionDelta


class ChoiceDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


def event_stream(chunk: str) -> dict[str, Any]:
    """The content of a response that streams chunks of this schema, or an error after some of them."""
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in (chunk, "ErrorBody")]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": refs}}
    event = {
        "type": "object",
        "description": "With `stream`. The last one is `[DONE]`.",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]}},
        "required": ["data"],
    }
    return {"text/event-stream": {"itemSchema": event}}
