"""The workers behind a Serve deployment, as one EngineClient.

A stream is a chain of attempts. An attempt ends the chain when it finishes, or when the request itself is refused. When
its worker dies, drains or is full, the next attempt goes to another one and carries the tokens so far as part of the
prompt; random numbers depend on seed and position alone, so the answer goes on as if nothing had happened.

    what an attempt meets                      before the first token      after it
    -----------------------------------------  -------------------------   -------------------------------
    worker dies, connection breaks             next attempt, at once       next attempt, at once
    refusal: unavailable (drains, has failed)  next attempt, after a wait  next attempt, after a wait
    refusal: overloaded                        one other worker, then 429  next attempt, after a wait
    too many wait in this gateway              another try, then 429       next attempt, after a wait
    refusal: invalid argument, deadline        that error                  that error
    attempts or patience used up               Unavailable                 Unavailable; Overloaded
"""

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from chorus_cluster.errors import ChorusError, DeadlineExceeded, InternalError, InvalidRequest, Overloaded, Unavailable
from chorus_cluster.routing.retries import Retries, RetryPolicy
from chorus_protos.v1 import engine_pb2

logger = logging.getLogger(__name__)

_DEFAULT_RETRY_AFTER_S = 1.0
# How long a deadline's own finish reason may be late before we stop waiting for it.
_DEADLINE_GRACE_S = 2.0


class ResponseStream(Protocol):
    """The part of Serve's response generator that we use."""

    def __anext__(self) -> Any: ...

    def cancel(self) -> None: ...


class _WorkerLost(Exception):
    """The worker died, the connection to it broke, or its code raised; the message says which."""


class _Refused(Exception):
    """The worker, or Serve in its stead, didn't take the request."""

    def __init__(self, error: ChorusError) -> None:
        super().__init__(error.code)
        self.error = error


class ServeEngineClient:
    """An EngineClient over the handles of the worker deployment's `generate_serialized` (a stream) and `model_info`."""

    def __init__(
        self,
        generate: Callable[[engine_pb2.GenerateRequest], Any],
        model_info: Callable[[engine_pb2.GetModelInfoRequest], Any],
        policy: RetryPolicy,
        on_retry: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._generate = generate
        self._model_info = model_info
        self._policy = policy
        self._on_retry = on_retry

    async def model_info(self) -> engine_pb2.ModelInfo:
        for _ in range(self._policy.max_attempts):
            try:
                info: engine_pb2.ModelInfo = await self._model_info(engine_pb2.GetModelInfoRequest())
                return info
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise Unavailable() from error
            except Exception as error:  # As in _next.
                logger.warning("A worker was lost while it was asked for the model: %s", type(error).__name__)
        raise Unavailable()

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateResponse]:
        tokens: list[int] = []
        retries = Retries(self._policy)
        while True:
            finish = _finish_of(request, tokens)
            if finish:
                # The worker died between its last token and saying that it was the last.
                yield engine_pb2.GenerateResponse(finish_reason=finish)
                return
            try:
                attempt = self._attempt(_resumed(request, tokens), is_resumed=bool(tokens))
                async with contextlib.aclosing(attempt) as responses:
                    async for response in responses:
                        # A slice: iteration asks for each element.
                        tokens += response.token_ids[:]
                        yield response
                        if response.finish_reason:
                            return
            except _Refused as refused:
                wait_s = retries.after_refusal(refused.error, has_tokens=bool(tokens))
                if _ends_within(request, wait_s):
                    raise DeadlineExceeded() from refused
                self._on_retry(refused.error.code)
                await asyncio.sleep(wait_s)
            except _WorkerLost as lost:
                logger.warning("Request %s lost its worker after %d tokens: %s", request.request_id, len(tokens), lost)
                retries.after_loss()
                self._on_retry("worker_lost")

    async def _attempt(
        self, request: engine_pb2.GenerateRequest, *, is_resumed: bool
    ) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
        # A context of its own: Serve would take calls of one HTTP request for one, and couldn't tell them apart.
        context = contextvars.Context()
        stream: ResponseStream = context.run(self._generate, request)
        response = await _first(stream, context, _seconds_left(request))
        try:
            if response.HasField("refusal"):
                raise _Refused(_error_of(response.refusal))
            if is_resumed:
                response.num_cached_tokens = 0
                response.queue_time_s = 0.0
            while True:
                yield response
                response = await _next(stream)
        finally:
            stream.cancel()


async def _first(
    stream: ResponseStream, context: contextvars.Context, timeout_s: float | None
) -> engine_pb2.GenerateResponse:
    """The stream's first response. If it is cancelled or late, the call ends in the background."""
    loop = asyncio.get_running_loop()
    first = loop.create_task(_next(stream), context=context)
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(first)
    except (asyncio.CancelledError, TimeoutError) as error:
        ending = loop.create_task(_end(stream, first), context=context)
        _endings.add(ending)
        ending.add_done_callback(_endings.discard)
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded() from None
        raise


# Tasks that nobody awaits: the event loop alone would let them be collected.
_endings: set[asyncio.Task[None]] = set()


async def _end(stream: ResponseStream, first: "asyncio.Task[engine_pb2.GenerateResponse]") -> None:
    """Ends a call whose first response nobody waits for any more.

    Between the moment in which Serve has assigned the call to a replica and the one in which the stream takes hold of
    it, cancelling either would lose the call, and it would run on. Asking the stream once more takes hold of it, if it
    is there.
    """
    first.cancel()
    await asyncio.wait([first])
    again = asyncio.create_task(_next(stream))
    await asyncio.sleep(0)
    stream.cancel()
    again.cancel()
    await asyncio.wait([again])
    for task in (first, again):
        if not task.cancelled():
            # Retrieved, so that asyncio doesn't report it.
            task.exception()


async def _next(stream: ResponseStream) -> engine_pb2.GenerateResponse:
    try:
        return engine_pb2.GenerateResponse.FromString(await stream.__anext__())
    except StopAsyncIteration:
        raise _WorkerLost("its stream ended without a finish reason") from None
    except BackPressureError as error:
        raise _Refused(Overloaded(error.retry_after_s or _DEFAULT_RETRY_AFTER_S)) from error
    except DeploymentUnavailableError as error:
        raise _Refused(Unavailable()) from error
    except Exception as error:  # Whatever escapes from a worker's code arrives here under its own type.
        raise _WorkerLost(type(error).__name__) from error


def _resumed(request: engine_pb2.GenerateRequest, tokens: list[int]) -> engine_pb2.GenerateRequest:
    if not tokens:
        return request
    resumed = engine_pb2.GenerateRequest()
    resumed.CopyFrom(request)
    resumed.prompt_token_ids.extend(tokens)
    resumed.num_resumed_tokens += len(tokens)
    return resumed


def _finish_of(request: engine_pb2.GenerateRequest, tokens: list[int]) -> "engine_pb2.FinishReason.ValueType":
    """The finish reason that the tokens so far already imply; unspecified (0) while they don't."""
    if tokens and tokens[-1] in request.sampling.stop_token_ids:
        return engine_pb2.FINISH_REASON_STOP
    if request.max_tokens and request.num_resumed_tokens + len(tokens) >= request.max_tokens:
        return engine_pb2.FINISH_REASON_LENGTH
    return engine_pb2.FINISH_REASON_UNSPECIFIED


def _seconds_left(request: engine_pb2.GenerateRequest) -> float | None:
    """How long to wait for a first response: workers enforce the deadline, this covers the way to them."""
    if not request.HasField("deadline_unix_s"):
        return None
    return max(0.0, request.deadline_unix_s - time.time()) + _DEADLINE_GRACE_S


def _ends_within(request: engine_pb2.GenerateRequest, seconds: float) -> bool:
    """Whether the deadline comes first: no worker would take the request after the wait."""
    return request.HasField("deadline_unix_s") and request.deadline_unix_s <= time.time() + seconds


def _error_of(refusal: engine_pb2.Refusal) -> ChorusError:
    retry_after_s = refusal.retry_after_s if refusal.HasField("retry_after_s") else None
    match refusal.reason:
        case engine_pb2.REFUSAL_REASON_INVALID_ARGUMENT:
            return InvalidRequest(refusal.field or None, refusal.message)
        case engine_pb2.REFUSAL_REASON_OVERLOADED:
            return Overloaded(retry_after_s or _DEFAULT_RETRY_AFTER_S)
        case engine_pb2.REFUSAL_REASON_UNAVAILABLE:
            return Unavailable(retry_after_s=retry_after_s)
        case engine_pb2.REFUSAL_REASON_DEADLINE:
            return DeadlineExceeded()
        case _:
            logger.error("A worker refused a request for an unknown reason: %s", refusal.reason)
            return InternalError()
