"""The response to a request that generates: JSON, or server-sent events."""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chorus_cluster.errors import ChorusError, to_client_error
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.choices import close_all, merged, together
from chorus_cluster.gateway.completion import Completion, collect
from chorus_cluster.gateway.http.io import LeaveWatch, json_response
from chorus_cluster.gateway.stream import ChatStream

logger = logging.getLogger(__name__)

EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer answers (nginx) don't buffer this one.
    (b"x-accel-buffering", b"no"),
]


class Writer(Protocol):
    """Writes the events of one answer; each method returns whole ones, ready to be sent."""

    def first(self) -> bytes:
        """What comes before any event; may be empty."""
        ...

    def events(self, events: Iterable[ev.Event]) -> bytes: ...

    def end(self, usage: ev.Usage) -> bytes:
        """After the last event of all answers."""
        ...

    def error(self, error: ChorusError) -> bytes:
        """An error after the first event, and the end."""
        ...


class Form(Protocol):
    """A parsed request, and the form that its answers take on the wire."""

    stream: bool

    async def start(self, deadline_unix_s: float | None, owner: str) -> list[ChatStream]:
        """Errors: those of `chorus_cluster.errors`."""
        ...

    def writer(self, stream: ChatStream, index: int) -> Writer: ...

    def usage(self, usages: Sequence[ev.Usage]) -> ev.Usage:
        """Of all answers."""
        ...

    def body(self, completions: Sequence[Completion]) -> dict[str, Any]: ...


class GenerationResponse(Response):
    """Runs a parsed request and answers it; nothing runs before the server calls it.

    Errors before the first byte are raised, and become responses of their own; later ones become an event. Whoever ends
    the response, the client, the server or the engine, the request ends with it.
    """

    def __init__(self, form: Form, deadline_unix_s: float | None, owner: str) -> None:
        super().__init__()
        self._form = form
        self._deadline_unix_s = deadline_unix_s
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with LeaveWatch(receive):
            streams = await self._form.start(self._deadline_unix_s, self._owner)
            try:
                if self._form.stream:
                    await self._send_events(streams, send)
                    return
                completions = await together(map(collect, streams))
            finally:
                await close_all(streams)
        await json_response(self._form.body(completions))(scope, receive, send)

    async def _send_events(self, streams: Sequence[ChatStream], send: Send) -> None:
        writers = [self._form.writer(stream, index) for index, stream in enumerate(streams)]
        await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM_HEADERS)})
        await send_piece(send, b"".join(writer.first() for writer in writers))
        try:
            async with contextlib.aclosing(merged(streams)) as pieces:
                async for index, events in pieces:
                    await send_piece(send, writers[index].events(events))
            await send_piece(send, writers[0].end(self._form.usage([stream.usage for stream in streams])))
        except Exception as error:  # The status is out: all that is left is to say so in the stream.
            shown = to_client_error(error)
            if shown is not error:
                logger.exception("%s failed unexpectedly", streams[0].id)
            await send_piece(send, writers[0].error(shown))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
