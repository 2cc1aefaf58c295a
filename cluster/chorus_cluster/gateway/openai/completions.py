"""/v1/completions: OpenAI's old completions of raw prompts, as servers of open models have them."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chorus_cluster.errors import ChorusError, InvalidRequest
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.choices import total_of_prompts
from chorus_cluster.gateway.completion import Completion
from chorus_cluster.gateway.openai.models import Elements, FormattedBody, Usage
from chorus_cluster.gateway.openai.parse import output_format, parse_body, sampling_fields, stream_flags
from chorus_cluster.gateway.openai.sse import DONE, encode, error_events, finite_logprob, usage_body
from chorus_cluster.gateway.request import DEFAULT_TEXT_TOKENS, TextRequest
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.gateway.validate import MAX_CHOICES


class CompletionBody(FormattedBody):
    """Body of POST /v1/completions."""

    model_config = ConfigDict(title="CompletionRequest")

    prompt: str | Elements[str] | Elements[int] | Elements[Elements[int]] = Field(
        description="Texts, in which special tokens may be spelled out (`<|start|>user<|message|>`), or token ids."
    )
    max_tokens: int | None = Field(default=None, description="Default 16.")
    logprobs: int | None = Field(default=None, description="0 to 20 alternatives to each token.")
    echo: bool | None = Field(default=None, description="Whether answers begin with their prompt; not with `logprobs`.")
    skip_special_tokens: bool | None = Field(default=None, description="Default true: they are left out of the text.")

    # Served in one form only; anything else is refused.
    best_of: int | None = Field(default=None, description="Only as `n`.")
    suffix: str | None = Field(default=None, description="Only empty.")

    # Accepted whatever they hold: they change nothing about the answer.
    add_special_tokens: Any = None
    user: Any = None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class _TextPiece(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None


class TextChoice(_TextPiece):
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(_TextPiece):
    finish_reason: Literal["stop", "length"] | None


class TextCompletionChunk(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class CompletionForm:
    """See `Form`."""

    def __init__(self, service: ChatService, value: Any) -> None:
        """`value`: the body, as JSON. Errors: `InvalidRequest`."""
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) and len(prompt) > MAX_CHOICES:
            # At a glance: each would take time to check.
            raise InvalidRequest("prompt", f"holds {len(prompt)} prompts; at most {MAX_CHOICES} answers are given")
        body = parse_body(value, CompletionBody)
        self._service = service
        self._request = _to_request(body)
        self.stream, self._include_usage = stream_flags(body.stream, body.stream_options)

    async def start(self, deadline_unix_s: float | None, owner: str) -> list[ChatStream]:
        return await self._service.start_text(self._request, deadline_unix_s=deadline_unix_s, owner=owner)

    def writer(self, stream: ChatStream, index: int) -> "TextChunkWriter":
        return TextChunkWriter(stream, index, include_usage=self._include_usage)

    def usage(self, usages: Sequence[ev.Usage]) -> ev.Usage:
        return total_of_prompts(usages, self._request.n)

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        first = completions[0]
        with_logprobs = self._request.top_logprobs is not None
        return {
            **_head(first.id, first.created, first.model),
            "choices": [
                {
                    "index": index,
                    "text": completion.content or "",
                    "logprobs": _logprobs(completion.logprobs, 0) if with_logprobs else None,
                    "finish_reason": completion.finished.reason,
                }
                for index, completion in enumerate(completions)
            ],
            "usage": usage_body(self.usage([completion.finished.usage for completion in completions])),
        }


class TextChunkWriter:
    """See `Writer`."""

    def __init__(self, stream: ChatStream, index: int, *, include_usage: bool) -> None:
        self._head = _head(stream.id, stream.created, stream.model)
        self._index = index
        self._include_usage = include_usage
        # Characters so far.
        self._length = 0

    def first(self) -> bytes:
        return b""

    def events(self, events: Iterable[ev.Event]) -> bytes:
        return b"".join(map(self._event, events))

    def end(self, usage: ev.Usage) -> bytes:
        return (self._chunk([], usage_body(usage)) if self._include_usage else b"") + DONE

    def error(self, error: ChorusError) -> bytes:
        return error_events(error)

    def _event(self, event: ev.Event) -> bytes:
        choice: dict[str, Any] = {"index": self._index, "text": "", "logprobs": None, "finish_reason": None}
        if isinstance(event, ev.Finished):
            choice["finish_reason"] = event.reason
        elif isinstance(event, ev.Answer):
            choice["text"] = event.text
            if event.logprobs:
                choice["logprobs"] = _logprobs(event.logprobs, self._length)
            self._length += len(event.text)
        return self._chunk([choice], None)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        chunk = self._head | {"choices": choices} | ({"usage": usage} if self._include_usage else {})
        return f"data: {encode(chunk)}\n\n".encode()


def _head(id: str, created: int, model: str) -> dict[str, Any]:
    return {"id": id, "object": "text_completion", "created": created, "model": model}


def _logprobs(entries: Sequence[ev.Logprob], start: int) -> dict[str, Any]:
    """OpenAI's old form. `start`: characters of the answer before the first entry."""
    offsets, spelled = [], b""
    for entry in entries:
        offsets.append(start + len(spelled.decode(errors="ignore")))
        spelled += entry.sampled.token_bytes
    return {
        "tokens": [entry.sampled.text for entry in entries],
        "token_logprobs": [finite_logprob(entry.sampled) for entry in entries],
        # The sampled token's is always among them, as OpenAI's.
        "top_logprobs": [
            {other.text: finite_logprob(other) for other in (*entry.top, entry.sampled)} for entry in entries
        ],
        "text_offset": offsets,
    }


def _to_request(body: CompletionBody) -> TextRequest:
    if body.best_of is not None and body.best_of != (1 if body.n is None else body.n):
        raise InvalidRequest("best_of", "must be as 'n': answers are not ranked")
    if body.suffix:
        raise InvalidRequest("suffix", "is not supported: gpt-oss only goes on")
    return TextRequest(
        model=body.model,
        prompts=_prompts(body.prompt),
        echo=bool(body.echo),
        with_markup=body.skip_special_tokens is False,
        output_format=output_format(body),
        max_tokens=DEFAULT_TEXT_TOKENS if body.max_tokens is None else body.max_tokens,
        max_tokens_field="max_tokens",
        top_logprobs=body.logprobs,
        top_logprobs_field="logprobs",
        **sampling_fields(body),
    )


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[str | Sequence[int], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    ids = [item for item in prompt if isinstance(item, int)]
    # A list of numbers is one prompt; a list of anything else is of prompts.
    return (ids,) if ids else tuple(item for item in prompt if not isinstance(item, int))
