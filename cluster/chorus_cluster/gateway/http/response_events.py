"""The answers of /v1/responses as HTTP sends them: JSON, or server-sent events."""

import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chorus_cluster.errors import ChorusError
from chorus_cluster.gateway.http.generation import EVENT_STREAM_HEADERS, send_piece
from chorus_cluster.gateway.http.io import LeaveWatch, json_response
from chorus_cluster.gateway.responses.request import ResponseRequest
from chorus_cluster.gateway.responses.run import shown_error
from chorus_cluster.gateway.responses.service import ResponsesService, Started
from chorus_cluster.gateway.responses.writer import sse_event


class ResponseAnswer(Response):
    """Runs a parsed request and answers it; nothing runs before the server calls it.

    Errors before the first byte are raised, and become responses of their own; later ones become an event. Whoever ends
    the answer, the client, the server or the engine, the request ends with it, and is not stored.
    """

    def __init__(
        self, service: ResponsesService, request: ResponseRequest, deadline_unix_s: float | None, owner: str
    ) -> None:
        super().__init__()
        self._service = service
        self._request = request
        self._deadline_unix_s = deadline_unix_s
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = (self._request, self._owner, self._deadline_unix_s)
        async with LeaveWatch(receive):
            if self._request.stream:
                started = await self._service.start(*asked)
                try:
                    await self._send_events(started, send)
                finally:
                    await started.stream.aclose()
                return
            body = await self._service.create(*asked)
        await json_response(body)(scope, receive, send)

    async def _send_events(self, started: Started, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM_HEADERS)})
        # The status is out: of an error, the last event says all that can be said.
        with contextlib.suppress(ChorusError):
            async with contextlib.aclosing(self._service.events(started)) as pieces:
                async for events in pieces:
                    await _send_all(send, events)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StoredEvents(Response):
    """Streams the events of a response in the background. A client that leaves ends nothing but this."""

    def __init__(self, id: str, events: AsyncGenerator[list[str], None], after: int) -> None:
        super().__init__()
        self._id = id
        self._events = events
        self._num_sent = after + 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with LeaveWatch(receive):
            await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM_HEADERS)})
            try:
                async with contextlib.aclosing(self._events):
                    async for events in self._events:
                        await _send_all(send, events)
                        self._num_sent += len(events)
            except Exception as error:  # As above. The response itself may be well.
                shown = shown_error(error, self._id)
                fields = {"code": shown.code, "message": shown.message, "param": None}
                await _send_all(send, [sse_event("error", self._num_sent, fields)])
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_all(send: Send, events: list[str]) -> None:
    if events:
        await send_piece(send, "".join(events).encode())
