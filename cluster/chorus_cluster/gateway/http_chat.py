"""The response to a chat request: JSON, or server-sent events."""

import contextlib
import logging
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chorus_cluster.errors import to_client_error
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.choices import close_all, merged, together, total
from chorus_cluster.gateway.completion import collect, completion_body
from chorus_cluster.gateway.http_io import LeaveWatch, json_response
from chorus_cluster.gateway.parse import ParsedBody
from chorus_cluster.gateway.sse import ChunkWriter
from chorus_cluster.gateway.stream import ChatStream

logger = logging.getLogger(__name__)

_EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer answers (nginx) don't buffer this one.
    (b"x-accel-buffering", b"no"),
]


class ChatResponse(Response):
    """Runs a parsed request and answers it; nothing runs before the server calls it.

    Errors before the first byte are raised, and become responses of their own; later ones become an event. Whoever ends
    the response, the client, the server or the engine, the request ends with it.
    """

    def __init__(self, service: ChatService, parsed: ParsedBody, deadline_unix_s: float | None, owner: str) -> None:
        super().__init__()
        self._service = service
        self._parsed = parsed
        self._deadline_unix_s = deadline_unix_s
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with LeaveWatch(receive):
            streams = await self._service.start_all(
                self._parsed.request, deadline_unix_s=self._deadline_unix_s, owner=self._owner
            )
            try:
                if self._parsed.stream:
                    await self._send_events(streams, send)
                    return
                completions = await together(map(collect, streams))
            finally:
                await close_all(streams)
        with_logprobs = self._parsed.request.top_logprobs is not None
        await json_response(completion_body(completions, with_logprobs=with_logprobs))(scope, receive, send)

    async def _send_events(self, streams: Sequence[ChatStream], send: Send) -> None:
        include_usage = self._parsed.include_usage
        writers = [
            ChunkWriter(stream.id, stream.created, stream.model, include_usage=include_usage, index=index)
            for index, stream in enumerate(streams)
        ]
        await send({"type": "http.response.start", "status": 200, "headers": list(_EVENT_STREAM_HEADERS)})
        await _send_piece(send, b"".join(writer.role() for writer in writers))
        try:
            if len(streams) == 1:
                async for events in streams[0]:
                    await _send_piece(send, writers[0].events(events))
            else:
                async with contextlib.aclosing(merged(streams)) as pieces:
                    async for index, events in pieces:
                        await _send_piece(send, writers[index].events(events))
            await _send_piece(send, writers[0].end(total([stream.usage for stream in streams])))
        except Exception as error:  # The status is out: all that is left is to say so in the stream.
            shown = to_client_error(error)
            if shown is not error:
                logger.exception("%s failed unexpectedly", streams[0].id)
            await _send_piece(send, writers[0].error(shown))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
