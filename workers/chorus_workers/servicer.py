"""EngineService as gRPC methods, for gateways outside of Ray Serve.

Between gateway and worker a refusal is a message; here it is the call's status, before any message:

    INVALID_ARGUMENT → INVALID_ARGUMENT     trailing metadata `field`: the field at fault
    OVERLOADED       → RESOURCE_EXHAUSTED   trailing metadata `retry-after-ms`
    UNAVAILABLE      → UNAVAILABLE
    DEADLINE         → DEADLINE_EXCEEDED

The same is in the trailing metadata `grpc-status-details-bin`, a `google.rpc.Status` as the gateway's, with ErrorInfo,
BadRequest and RetryInfo. A call that is cancelled, or past its deadline, ends its request.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from chorus_protos.v1 import engine_pb2, engine_pb2_grpc
from chorus_workers.engine.stream import EngineDeadError

SERVICE_NAME = engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name
_STATUS = {
    engine_pb2.REFUSAL_REASON_INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    engine_pb2.REFUSAL_REASON_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    engine_pb2.REFUSAL_REASON_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    engine_pb2.REFUSAL_REASON_DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# ErrorInfo's reasons: the codes of errors that clients of the gateway know.
_REASONS = {
    engine_pb2.REFUSAL_REASON_INVALID_ARGUMENT: "INVALID_VALUE",
    engine_pb2.REFUSAL_REASON_OVERLOADED: "OVERLOADED",
    engine_pb2.REFUSAL_REASON_UNAVAILABLE: "UNAVAILABLE",
    engine_pb2.REFUSAL_REASON_DEADLINE: "DEADLINE_EXCEEDED",
}


class TokenService(Protocol):
    """What the servicer asks of a worker."""

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateResponse]: ...
    async def abort(self, request: engine_pb2.AbortRequest) -> engine_pb2.AbortResponse: ...
    async def model_info(self, request: engine_pb2.GetModelInfoRequest) -> engine_pb2.ModelInfo: ...
    async def load(self, request: engine_pb2.GetLoadRequest) -> engine_pb2.EngineLoad: ...
    async def check_health(self) -> None: ...


Context = grpc.aio.ServicerContext[Any, Any]


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """A worker's methods as gRPC methods."""

    def __init__(self, worker: TokenService) -> None:
        self._worker = worker

    async def Generate(
        self, request: engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[engine_pb2.GenerateResponse]:
        async with aclosing(answer(self._worker, request, context)) as responses:
            async for response in responses:
                yield response

    async def Abort(self, request: engine_pb2.AbortRequest, context: Context) -> engine_pb2.AbortResponse:
        return await self._worker.abort(request)

    async def GetModelInfo(self, request: engine_pb2.GetModelInfoRequest, context: Context) -> engine_pb2.ModelInfo:
        return await self._worker.model_info(request)

    async def GetLoad(self, request: engine_pb2.GetLoadRequest, context: Context) -> engine_pb2.EngineLoad:
        return await self._worker.load(request)


async def answer(
    worker: TokenService,
    request: engine_pb2.GenerateRequest,
    context: Context,
    name_fields: Callable[[engine_pb2.Refusal], engine_pb2.Refusal] = lambda refusal: refusal,
) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
    """The worker's responses, within the call's deadline. A refusal, and the engine's death, end the call.

    `name_fields`: how the caller's protocol words a refusal.
    """
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        deadline = time.time() + remaining_s
        given = request.deadline_unix_s if request.HasField("deadline_unix_s") else deadline
        request.deadline_unix_s = min(given, deadline)
    try:
        async with aclosing(worker.generate(request)) as responses:  # type: ignore[type-var]
            async for response in responses:
                if response.HasField("refusal"):
                    await abort_refused(context, name_fields(response.refusal))
                yield response
    except EngineDeadError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker's engine has failed")


async def abort_refused(context: Context, refusal: engine_pb2.Refusal) -> NoReturn:
    """Ends a call with what refused it."""
    metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", _details(refusal))]
    if refusal.field:
        metadata.append(("field", refusal.field))
    if refusal.HasField("retry_after_s"):
        metadata.append(("retry-after-ms", str(round(refusal.retry_after_s * 1000))))
    await context.abort(_STATUS[refusal.reason], refusal.message, tuple(metadata))


def _details(refusal: engine_pb2.Refusal) -> bytes:
    """A serialized `google.rpc.Status`, with the code and message that the call ends with."""
    status = Status(code=_STATUS[refusal.reason].value[0], message=refusal.message)
    details: list[Message] = [ErrorInfo(reason=_REASONS[refusal.reason], domain="chorus")]
    if refusal.field:
        violation = BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
        details.append(BadRequest(field_violations=[violation]))
    if refusal.HasField("retry_after_s"):
        retry_delay = Duration()
        retry_delay.FromMilliseconds(round(refusal.retry_after_s * 1000))
        details.append(RetryInfo(retry_delay=retry_delay))
    for detail in details:
        status.details.add().Pack(detail)
    serialized: bytes = status.SerializeToString()
    return serialized
