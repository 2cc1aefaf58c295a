"""The form of chat completions."""

from collections.abc import Sequence
from typing import Any

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.choices import total
from chorus_cluster.gateway.completion import Completion
from chorus_cluster.gateway.openai.parse import ParsedBody
from chorus_cluster.gateway.openai.sse import ChunkWriter, logprob_body, usage_body
from chorus_cluster.gateway.stream import ChatStream


class ChatForm:
    """See `Form`."""

    def __init__(self, service: ChatService, parsed: ParsedBody) -> None:
        self._service = service
        self._parsed = parsed
        self.stream = parsed.stream

    async def start(self, deadline_unix_s: float | None, owner: str) -> list[ChatStream]:
        return await self._service.start_all(self._parsed.request, deadline_unix_s=deadline_unix_s, owner=owner)

    def writer(self, stream: ChatStream, index: int) -> ChunkWriter:
        include_usage = self._parsed.include_usage
        return ChunkWriter(stream.id, stream.created, stream.model, include_usage=include_usage, index=index)

    def usage(self, usages: Sequence[ev.Usage]) -> ev.Usage:
        return total(usages)

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]:
        return completion_body(completions, with_logprobs=self._parsed.request.top_logprobs is not None)


def completion_body(completions: Sequence[Completion], *, with_logprobs: bool) -> dict[str, Any]:
    """OpenAI's `chat.completion` object, of one request's answers."""
    first = completions[0]
    return {
        "id": first.id,
        "object": "chat.completion",
        "created": first.created,
        "model": first.model,
        "choices": [
            _choice_body(index, completion, with_logprobs=with_logprobs) for index, completion in enumerate(completions)
        ],
        "usage": usage_body(total([completion.finished.usage for completion in completions])),
    }


def _choice_body(index: int, completion: Completion, *, with_logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": completion.content, "refusal": None}
    if completion.reasoning is not None:
        message["reasoning"] = completion.reasoning
    if completion.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in completion.tool_calls
        ]
    logprobs = {"content": [logprob_body(entry) for entry in completion.logprobs]} if with_logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": completion.finished.reason}
