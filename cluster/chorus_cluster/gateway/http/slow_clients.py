"""Bounds the time that a client may take over HTTP: see `chorus_cluster.gateway.slow_clients`."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chorus_cluster.errors import ClientTooSlow
from chorus_cluster.gateway.http.io import CancelledByUs
from chorus_cluster.gateway.slow_clients import SendTimer

# Of a body that is sent in one go: a client that takes that much now and then reads on.
_MAX_PIECE_BYTES = 2**14


class ClientTimeoutMiddleware:
    """Raises `ClientTooSlow` where a request's body isn't there in time, and `ClientLeft` when the client takes nothing
    for `timeout_s` of what it is sent."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        async with _SendWatch(send, self._timeout_s) as watch:
            await self._app(scope, _in_time(receive, self._timeout_s), watch.send)


def _in_time(receive: Receive, timeout_s: float) -> Receive:
    """`receive`, with `timeout_s` from now for the whole body."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise ClientTooSlow(f"The request's body was not there within {timeout_s:g} s.") from None
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


class _SendWatch(CancelledByUs):
    def __init__(self, send: Send, timeout_s: float) -> None:
        super().__init__()
        self._send = send
        self._timeout_s = timeout_s

    async def __aenter__(self) -> "_SendWatch":
        self._note_task()
        self._timer = SendTimer(self._timeout_s, self._cancel)
        return self

    def _release(self) -> None:
        self._timer.cancel()

    async def send(self, message: Message) -> None:
        body = message.get("body", b"")
        if len(body) > _MAX_PIECE_BYTES:
            last = (len(body) - 1) // _MAX_PIECE_BYTES * _MAX_PIECE_BYTES
            for start in range(0, last, _MAX_PIECE_BYTES):
                await self.send({**message, "body": body[start : start + _MAX_PIECE_BYTES], "more_body": True})
            message = {**message, "body": body[last:]}
        self._timer.begin()
        try:
            await self._send(message)
        finally:
            self._timer.end()
