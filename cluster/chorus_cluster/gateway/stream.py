"""A running chat request: reads the engine's responses as they come, and hands out events as the client takes them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from chorus_cluster.errors import ChorusError, Unavailable
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.answer import AnswerAssembler
from chorus_cluster.gateway.metrics import ChatTimer
from chorus_cluster.gateway.request_id import request_id
from chorus_protos.v1 import engine_pb2

logger = logging.getLogger(__name__)

# Events kept for a client that is slow to take them, before the engine's responses are left where they are.
MAX_WAITING_EVENTS = 1024


def outcome_of(error: BaseException) -> str:
    """What the metrics call a request that ended in `error`."""
    if isinstance(error, asyncio.CancelledError):
        return "client_left"
    return error.code if isinstance(error, ChorusError) else "internal_error"


class ChatStream:
    """Iterates over lists of events: all that came since the last one was taken, neighbours of one kind merged.

    A client that keeps up gets each engine response at once; one that doesn't gets fewer, longer pieces. Closing the
    stream ends the request on its engine. Errors are those of `chorus_cluster.errors`, after the events before them.
    """

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        events: list[ev.Event],
        responses: AsyncIterator[engine_pb2.GenerateResponse],
        assembler: AnswerAssembler,
        timer: ChatTimer,
    ) -> None:
        """`events` are those of the first response, which `assembler` has been fed; `responses` the rest."""
        self.id = id
        # Seconds since the epoch.
        self.created = created
        self.model = model
        self._assembler = assembler
        self._timer = timer
        self._responses = responses
        self._events = events
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_ended = False
        if events:
            self._has_news.set()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @property
    def usage(self) -> ev.Usage:
        """So far."""
        return self._assembler.usage

    def __aiter__(self) -> "ChatStream":
        return self

    async def __anext__(self) -> list[ev.Event]:
        await self._has_news.wait()
        if self._events:
            events, self._events = self._events, []
            self._has_room.set()
            if not self._has_ended:
                self._has_news.clear()
            return ev.merge(events) if len(events) > 1 else events
        # Raises what ended the reader, if it was an error.
        await self._reader
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the request, wherever it is; returns when the engine has been told."""
        if not self._has_ended:  # If it has, it may be telling the engine: that must not be cut short.
            self._reader.cancel()
        await asyncio.wait([self._reader])
        if not self._reader.cancelled():
            self._reader.exception()  # Whoever closes doesn't want to hear of it.
        # A reader that was cancelled before its first step has ended nothing.
        finished = self._assembler.finished
        await self._end("client_left" if finished is None else finished.reason)

    async def _read(self) -> None:
        assembler = self._assembler
        outcome = "internal_error"
        try:
            while assembler.finished is None:
                if len(self._events) >= MAX_WAITING_EVENTS:
                    await self._wait_for_room()
                response = await next_response(self._responses)
                if response.token_ids:
                    self._timer.on_message()
                events = assembler.feed(response)
                if events:
                    self._events += events
                    self._has_news.set()
                if assembler.failure is not None:
                    raise assembler.failure
            outcome = assembler.finished.reason
        except (Exception, asyncio.CancelledError) as error:
            outcome = outcome_of(error)
            raise
        finally:
            await self._end(outcome)

    async def _wait_for_room(self) -> None:
        self._has_room.clear()
        await self._has_room.wait()

    async def _end(self, outcome: str) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._has_news.set()
        usage = self._assembler.usage
        self._timer.finish(outcome, usage, self._assembler.repairs)
        logger.info(
            "Request %s (%s) ended: %s, %d prompt tokens, %d completion tokens, %.3f s",
            *(request_id.get(), self.id, outcome, usage.prompt_tokens, usage.completion_tokens, self._timer.seconds),
        )
        await close_responses(self._responses)


async def next_response(responses: AsyncIterator[engine_pb2.GenerateResponse]) -> engine_pb2.GenerateResponse:
    """The next response of a request that has not finished.

    Errors: `Unavailable` where there is none, besides the iterator's own.
    """
    try:
        return await anext(responses)
    except StopAsyncIteration:
        raise Unavailable("The worker ended the request without a finish reason.") from None


async def close_responses(responses: AsyncIterator[engine_pb2.GenerateResponse]) -> None:
    """Tells the engine that nobody reads on."""
    if isinstance(responses, AsyncGenerator):
        await responses.aclose()
