"""What every HTTP route needs: bounded bodies, clients that leave, error bodies, request ids, counting."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chorus_cluster.errors import ChorusError, ClientTooSlow, InternalError, PayloadTooLarge, Unauthenticated
from chorus_cluster.gateway.metrics import GatewayMetrics
from chorus_cluster.gateway.request_id import new_request_id, request_id

logger = logging.getLogger(__name__)

# Nobody reads it; it stands in logs and metrics (as in nginx).
CLIENT_LEFT_STATUS = 499
# How much longer a client may send a body that was refused.
_MAX_DRAIN_BYTES = 2**28
_MAX_DRAIN_S = 10.0


class ClientLeft(Exception):
    """The client closed its connection before it was answered."""


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Reads a request's body, as far as it may go.

    Errors: `PayloadTooLarge`, before anything is read if the headers say so; `ClientLeft`.
    """
    length = Headers(scope=scope).get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise PayloadTooLarge(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise PayloadTooLarge(limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


class CancelledByUs:
    """Base of contexts that may cancel what runs inside them, and raise `ClientLeft` in its place."""

    def __init__(self) -> None:
        self._has_left = False

    def _note_task(self) -> None:
        """To be called on entry."""
        task = asyncio.current_task()
        assert task is not None, "ASGI applications run in tasks"
        self._task = task

    def _cancel(self) -> None:
        self._has_left = True
        self._task.cancel()

    def _release(self) -> None:
        """Ends what might still call `_cancel`."""
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()
        if not self._has_left:
            return
        if kind is not asyncio.CancelledError:
            # Our cancellation came too late to be felt: take it here.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        # Not 0: somebody else cancelled the task too, and goes first.
        if self._task.uncancel() == 0:
            raise ClientLeft from None


class LeaveWatch(CancelledByUs):
    """Cancels what runs inside `async with` when the client leaves, and raises `ClientLeft` in its place."""

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive

    async def __aenter__(self) -> None:
        self._note_task()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def _release(self) -> None:
        self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel()


def json_response(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(body), status, headers, media_type="application/json")


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def error_response(error: ChorusError) -> Response:
    """OpenAI's error body with its status, Retry-After where that is known, and WWW-Authenticate beside 401."""
    if isinstance(error, PayloadTooLarge):
        return _TooLargeResponse(error)
    headers = {}
    if (retry_after := error.retry_after_header()) is not None:
        headers["retry-after"] = retry_after
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, ClientTooSlow):  # What still comes of the body must not be taken for another request.
        headers["connection"] = "close"
    return json_response(error.body(), error.http_status, headers)


class _TooLargeResponse(Response):
    """Answers at once, then reads on without keeping anything: a connection that is closed while the client still
    sends is reset, and most clients would never see the answer."""

    def __init__(self, error: PayloadTooLarge) -> None:
        super().__init__(_encode(error.body()), error.http_status, {"connection": "close"}, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # Who asked whether to send the body has been told now.
        if Headers(scope=scope).get("expect", "").lower() != "100-continue":
            with contextlib.suppress(TimeoutError, ClientTooSlow):
                async with asyncio.timeout(_MAX_DRAIN_S):
                    await _discard_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard_body(receive: Receive) -> None:
    num_bytes = 0
    while num_bytes < _MAX_DRAIN_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


class RequestMiddleware:
    """Outermost, in plain ASGI: gives each request its id, counts it, and answers what nobody caught."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, *, sends_request_id: bool) -> None:
        self._app = app
        self._metrics = metrics
        # Off where the server around us (Ray Serve) sends the header itself.
        self._sends_request_id = sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = new_request_id(Headers(scope=scope).get("x-request-id"))
        token = request_id.set(id)
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._sends_request_id:
                    MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self._answer(scope, receive, send_noting, lambda: status != 0)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(path, str(status or CLIENT_LEFT_STATUS)).inc()
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, has_started: Callable[[], bool]) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientLeft:
            logger.debug("The client left before it was answered")
        except Exception:  # The last resort: whatever it is must neither reach the client nor end the connection.
            logger.exception("Request %s failed unexpectedly", request_id.get())
            if not has_started():
                await error_response(InternalError())(scope, receive, send)
