"""What all gRPC methods of the gateway have in common: who may call, the call's status and metadata, its metrics.

A call that fails sets its status and returns: unary ones with an empty message, which is not sent beside a status.
Behind Serve's own proxy a stream must raise instead, or its status is lost. An exception costs the trailing metadata
and two tracebacks in the log, so it is raised only there.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from chorus_cluster.auth.keys import Scope
from chorus_cluster.errors import ChorusError, ClientTooSlow, PayloadTooLarge, to_client_error
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.choices import close_all
from chorus_cluster.gateway.deadline import TIMEOUT_FIELD, deadline_of
from chorus_cluster.gateway.grpc.service import Malformed
from chorus_cluster.gateway.grpc.status import DETAILS_KEY, status_details
from chorus_cluster.gateway.openai.parse import DEFAULT_MAX_BODY_BYTES
from chorus_cluster.gateway.request_id import new_request_id, request_id
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.gateway.slow_clients import DEFAULT_CLIENT_TIMEOUT_S, SendTimer
from chorus_cluster.gateway.stream import ChatStream

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class GrpcContext(Protocol):
    """What `RayServegRPCContext` and grpc.aio's servicer contexts have in common."""

    def invocation_metadata(self) -> Any: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


class GrpcMethods:
    """Serves `service` over gRPC.

    `responses`: by default, without a store. `access` decides who may ask; by default, everyone. `raises_in_streams`:
    Serve's own proxy stands in front (see above). `client_timeout_s`: how long a client may take to read a message of a
    stream.
    """

    def __init__(
        self,
        service: ChatService,
        *,
        responses: ResponsesService | None = None,
        access: Access | None = None,
        raises_in_streams: bool = False,
        client_timeout_s: float = DEFAULT_CLIENT_TIMEOUT_S,
        max_request_bytes: int = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        self._service = service
        self._responses = responses or ResponsesService(service)
        self._access = access or Access()
        self._raises_in_streams = raises_in_streams
        self._client_timeout_s = client_timeout_s
        self._max_request_bytes = max_request_bytes

    async def _unary(
        self,
        method: str,
        context: GrpcContext,
        empty: Callable[[], ResponseT],
        answer: Callable[["Call"], Awaitable[ResponseT]],
    ) -> ResponseT:
        """What `answer` makes of the call, with its status; `empty` beside an error. `method`: its full name."""
        call = Call(self._service, method, context)
        try:
            response = await answer(call)
        except asyncio.CancelledError:
            call.end(grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:  # The edge: every error becomes a status here.
            call.fail(error)
            return empty()
        call.end(grpc.StatusCode.OK)
        return response

    @contextlib.contextmanager
    def _streaming(self, method: str, context: GrpcContext) -> "Iterator[Call]":
        """As `_unary`, for the body of a method that yields: what it raises becomes the call's status."""
        call = Call(self._service, method, context)
        try:
            yield call
        except (asyncio.CancelledError, GeneratorExit):
            call.end(grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:  # The edge: every error becomes a status here.
            shown = call.fail(error)
            if self._raises_in_streams:
                raise shown from None
        else:
            call.end(grpc.StatusCode.OK)

    def _admit(self, request: RequestT | Malformed, call: "Call") -> tuple[RequestT, str]:
        """The request, and whose it is. Errors: `Unauthenticated`, `PermissionDenied`, `InvalidRequest`,
        `PayloadTooLarge`."""
        owner = call.owner(self._access)
        if isinstance(request, Malformed):
            raise request.error()
        if request.ByteSize() > self._max_request_bytes:
            raise PayloadTooLarge(self._max_request_bytes)
        return request, owner


class Reading(SendTimer):
    """A context in which streams are sent; at its end they are closed, and before it when the client doesn't read on in
    time. Its call stays open then until it does, or leaves."""

    def __init__(self, streams: Sequence[ChatStream], timeout_s: float) -> None:
        super().__init__(timeout_s, self._end_streams)
        self._streams = streams
        self._ending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Reading":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel()
        await close_all(self._streams)

    def end(self) -> None:
        """Errors: `ClientTooSlow`."""
        super().end()
        if self._ending is not None:
            raise ClientTooSlow()

    def _end_streams(self) -> None:
        self._ending = asyncio.get_running_loop().create_task(close_all(self._streams))


class Call:
    """One call: its metadata, its status, its entry in the metrics."""

    def __init__(self, service: ChatService, method: str, context: GrpcContext) -> None:
        self._metrics = service.metrics
        self._method = method
        self._context = context
        self._metadata: dict[str, str] = dict(_text_entries(context.invocation_metadata()))
        self._id = new_request_id(self._metadata.get("x-request-id"))
        request_id.set(self._id)

    def deadline_unix_s(self) -> float | None:
        """Seconds since the epoch by which the answer must be whole; None: no limit is known."""
        # For callers whose own deadline doesn't reach us: Serve doesn't tell it.
        text = self._metadata.get(TIMEOUT_FIELD)
        if text is not None:
            return deadline_of(text)
        # grpc.aio knows the call's own deadline; under Serve, its end cancels this method.
        remaining = getattr(self._context, "time_remaining", lambda: None)()
        return None if remaining is None else time.time() + remaining

    def owner(self, access: Access) -> str:
        """Whose call it is. Errors: `Unauthenticated`, `PermissionDenied`."""
        return access.owner(self._metadata.get("authorization"), Scope.INFERENCE)

    def fail(self, error: Exception) -> ChorusError:
        """Sets the status for an error, and returns the one to raise."""
        shown = to_client_error(error)
        if shown is not error:
            logger.error("Request %s failed unexpectedly", self._id, exc_info=error)
        trailing: list[tuple[str, str | bytes]] = [("x-request-id", self._id), ("error-code", shown.code)]
        if shown.field is not None and shown.field.isascii() and shown.field.isprintable():
            trailing.append(("error-field", shown.field))
        if (retry_after := shown.retry_after_header()) is not None:
            trailing.append(("retry-after", retry_after))
        trailing.append((DETAILS_KEY, status_details(shown, self._id)))
        self._context.set_code(shown.grpc_status)
        self._context.set_details(shown.message)
        self._context.set_trailing_metadata(trailing)
        self._count(shown.grpc_status)
        return shown

    def end(self, status: grpc.StatusCode) -> None:
        self._context.set_trailing_metadata([("x-request-id", self._id)])
        self._count(status)

    def _count(self, status: grpc.StatusCode) -> None:
        self._metrics.requests.labels(self._method, status.name).inc()


def _text_entries(metadata: Iterable[tuple[str, str | bytes]]) -> Iterable[tuple[str, str]]:
    for key, value in metadata:
        if isinstance(value, str):
            yield key, value
