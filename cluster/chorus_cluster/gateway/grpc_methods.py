"""The methods of `chorus.v1.ChatService`, named as Ray Serve's gRPC ingress calls them.

A call that fails sets its status and returns: unary ones with an empty message, which is not sent beside a status.
Behind Serve's own proxy a stream must raise instead, or its status is lost. An exception costs the trailing metadata
and two tracebacks in the log, so it is raised only there.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from chorus_cluster.auth.keys import Scope
from chorus_cluster.errors import ChorusError, InvalidRequest, PayloadTooLarge, to_client_error
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.choices import close_all, merged, together, total
from chorus_cluster.gateway.completion import collect
from chorus_cluster.gateway.grpc_models import completion_to_pb, deltas_to_pb, request_from_pb, usage_to_pb
from chorus_cluster.gateway.grpc_service import Malformed
from chorus_cluster.gateway.grpc_status import DETAILS_KEY, status_details
from chorus_cluster.gateway.parse import DEFAULT_MAX_BODY_BYTES
from chorus_cluster.gateway.request_id import new_request_id, request_id
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.gateway.tokens import detokenize, tokenize
from chorus_protos.v1 import chat_pb2

logger = logging.getLogger(__name__)

# As HTTP's header of that name, for callers whose own deadline doesn't reach us: Serve doesn't tell it.
TIMEOUT_METADATA = "x-request-timeout-s"
_SERVICE = "/chorus.v1.ChatService/"
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class GrpcContext(Protocol):
    """What `RayServegRPCContext` and grpc.aio's servicer contexts have in common."""

    def invocation_metadata(self) -> Any: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


class GrpcChatMethods:
    """Serves `service` over gRPC. `access` decides who may ask; by default, everyone. `raises_in_streams`: Serve's own
    proxy stands in front (see above)."""

    def __init__(
        self,
        service: ChatService,
        *,
        access: Access | None = None,
        raises_in_streams: bool = False,
        max_request_bytes: int = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        self._service = service
        self._access = access or Access()
        self._raises_in_streams = raises_in_streams
        self._max_request_bytes = max_request_bytes

    async def CreateChatCompletion(
        self, request: chat_pb2.ChatCompletionRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.ChatCompletionResponse:
        async def complete(call: "_Call") -> chat_pb2.ChatCompletionResponse:
            streams = await self._start(request, call)
            try:
                return completion_to_pb(await together(map(collect, streams)))
            finally:
                await close_all(streams)

        return await self._unary("CreateChatCompletion", grpc_context, chat_pb2.ChatCompletionResponse, complete)

    async def StreamChatCompletion(
        self, request: chat_pb2.ChatCompletionRequest | Malformed, grpc_context: GrpcContext
    ) -> AsyncIterator[chat_pb2.ChatCompletionChunk]:
        call = _Call(self._service, "StreamChatCompletion", grpc_context)
        try:
            streams = await self._start(request, call)
            first = streams[0]
            try:
                yield _chunk(first, ())
                are_several = len(streams) > 1
                async with contextlib.aclosing(merged(streams)) as pieces:
                    async for index, events in pieces:
                        yield _chunk(first, deltas_to_pb(events, index if are_several else None))
                if are_several:
                    usage = usage_to_pb(total([stream.usage for stream in streams]))
                    yield _chunk(first, [chat_pb2.ChatDelta(usage=usage)])
            finally:
                await close_all(streams)
        except (asyncio.CancelledError, GeneratorExit):
            call.end(grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:  # The edge: every error becomes a status here.
            shown = call.fail(error)
            if self._raises_in_streams:
                raise shown from None
            return
        call.end(grpc.StatusCode.OK)

    async def ListModels(
        self, request: chat_pb2.ListModelsRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.ListModelsResponse:
        async def list_models(call: "_Call") -> chat_pb2.ListModelsResponse:
            self._admit(request, call)
            info = await self._service.models.get()
            model = chat_pb2.Model(
                id=info.model, created=self._service.started_at, owned_by="chorus", max_model_len=info.max_model_len
            )
            return chat_pb2.ListModelsResponse(models=[model])

        return await self._unary("ListModels", grpc_context, chat_pb2.ListModelsResponse, list_models)

    async def Tokenize(
        self, request: chat_pb2.TokenizeRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.TokenizeResponse:
        async def encode(call: "_Call") -> chat_pb2.TokenizeResponse:
            asked, _ = self._admit(request, call)
            if asked.WhichOneof("input") is None:
                raise InvalidRequest("prompt", "is required, or chat")
            prompt = request_from_pb(asked.chat) if asked.HasField("chat") else asked.prompt
            done = await tokenize(self._service, asked.model, prompt)
            return chat_pb2.TokenizeResponse(token_ids=done.token_ids, max_model_len=done.max_model_len)

        return await self._unary("Tokenize", grpc_context, chat_pb2.TokenizeResponse, encode)

    async def Detokenize(
        self, request: chat_pb2.DetokenizeRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.DetokenizeResponse:
        async def decode(call: "_Call") -> chat_pb2.DetokenizeResponse:
            asked, _ = self._admit(request, call)
            return chat_pb2.DetokenizeResponse(text=await detokenize(self._service, asked.model, asked.token_ids))

        return await self._unary("Detokenize", grpc_context, chat_pb2.DetokenizeResponse, decode)

    async def _unary(
        self,
        method: str,
        context: GrpcContext,
        empty: Callable[[], ResponseT],
        answer: Callable[["_Call"], Awaitable[ResponseT]],
    ) -> ResponseT:
        """What `answer` makes of the call, with its status; `empty` beside an error."""
        call = _Call(self._service, method, context)
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

    async def _start(self, request: chat_pb2.ChatCompletionRequest | Malformed, call: "_Call") -> list[ChatStream]:
        asked, owner = self._admit(request, call)
        deadline = call.deadline_unix_s()
        return await self._service.start_all(request_from_pb(asked), deadline_unix_s=deadline, owner=owner)

    def _admit(self, request: RequestT | Malformed, call: "_Call") -> tuple[RequestT, str]:
        """The request, and whose it is. Errors: `Unauthenticated`, `PermissionDenied`, `InvalidRequest`,
        `PayloadTooLarge`."""
        owner = call.owner(self._access)
        if isinstance(request, Malformed):
            raise request.error()
        if request.ByteSize() > self._max_request_bytes:
            raise PayloadTooLarge(self._max_request_bytes)
        return request, owner


def _chunk(stream: ChatStream, deltas: Iterable[chat_pb2.ChatDelta]) -> chat_pb2.ChatCompletionChunk:
    return chat_pb2.ChatCompletionChunk(id=stream.id, created=stream.created, model=stream.model, deltas=deltas)


class _Call:
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
        text = self._metadata.get(TIMEOUT_METADATA)
        if text is None:
            # grpc.aio knows the call's own deadline; under Serve, its end cancels this method.
            remaining = getattr(self._context, "time_remaining", lambda: None)()
            return None if remaining is None else time.time() + remaining
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise InvalidRequest(TIMEOUT_METADATA, "must be a positive number of seconds")
        return time.time() + seconds

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
        self._metrics.requests.labels(_SERVICE + self._method, status.name).inc()


def _text_entries(metadata: Iterable[tuple[str, str | bytes]]) -> Iterable[tuple[str, str]]:
    for key, value in metadata:
        if isinstance(value, str):
            yield key, value
