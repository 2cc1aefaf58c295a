"""The form of chat completions."""

from collections.abc import Sequence
from typing import Any

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.choices import total
from chorus_cluster.gateway.completion import Completion, completion_body
from chorus_cluster.gateway.parse import ParsedBody
from chorus_cluster.gateway.sse import ChunkWriter
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
