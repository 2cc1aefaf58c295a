"""Responses that are made while no client waits.

A job is a task of the gateway that took the request. Several times a second it writes what there is to the store, and
with that renews its lease; if the store says that the response has ended (cancelled, deleted, given up), the job ends.
So any gateway can cancel any response, and stream any response's events. A lease that runs out is of a gateway that is
gone: the first other one to notice marks the response failed (docs/decisions/063).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from chorus_cluster.errors import Overloaded, Unavailable, to_client_error
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.responses.body import TERMINAL_EVENTS, Body, failed_body
from chorus_cluster.gateway.responses.run import ResponseRun
from chorus_cluster.gateway.responses.writer import split_events, sse_event
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.store.models import ACTIVE_STATUSES
from chorus_cluster.store.responses import ResponseStore, StoredResponse

logger = logging.getLogger(__name__)

# Of one gateway; more are refused.
MAX_JOBS: Final = 512
LEASE_S: Final = 30.0
_WRITE_PERIOD_S: Final = 0.1
# Without news, a job writes as seldom; it hears of its cancellation by that.
_HEARTBEAT_S: Final = 1.0
_POLL_S: Final = 0.1
_PIECES_AT_ONCE: Final = 64
_UPKEEP_PERIOD_S: Final = 5.0
# Between attempts to be admitted by workers that are full.
_MAX_RETRY_S: Final = 5.0
_ABANDONED: Final = "The server that made this response has gone; send it again."


@dataclass(slots=True, eq=False)
class Job:
    """`waiting`: events that are not in the store yet, up to the run's last."""

    stored: StoredResponse
    chat: ChatRequest
    run: ResponseRun
    deadline_unix_s: float | None
    waiting: list[str] = field(default_factory=list)
    # What the store has.
    written_body: Body = field(default_factory=dict)
    written_at: float = 0.0


class BackgroundJobs:
    """The jobs of one gateway."""

    def __init__(self, chat: ChatService, store: ResponseStore, clock: Callable[[], float] = time.time) -> None:
        self._chat = chat
        self._store = store
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def check_room(self) -> None:
        """Errors: Overloaded."""
        if len(self._tasks) >= MAX_JOBS:
            raise Overloaded(_MAX_RETRY_S, "Too many responses are made in the background already.")

    async def start(self, job: Job) -> StoredResponse:
        """Returns when the response is in the store."""
        now = self._clock()
        job.stored = replace(job.stored, lease_expires=now + LEASE_S)
        await self._store.add(job.stored)
        job.written_body, job.written_at = job.run.body, now
        job.waiting += job.run.created()
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks[job.stored.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.stored.id, None))
        return job.stored

    def end(self, id: str) -> None:
        """Ends a job, if it is this gateway's. The store knows already."""
        if id in self._tasks:
            self._tasks[id].cancel()

    async def drain(self, timeout_s: float) -> None:
        """Returns when all jobs have ended, or time is up."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout_s)

    async def close(self) -> None:
        """Ends all jobs. Their responses stay as they are, until their leases run out."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(self, id: str, owner: str, after: int) -> AsyncGenerator[list[str], None]:
        """The events behind `after`, to the response's end.

        Errors: Unavailable.
        """
        while True:
            pieces = await self._store.events(id, after, _PIECES_AT_ONCE)
            if not pieces and await self._store.status(id, owner) not in ACTIVE_STATUSES:
                # Once more: the last events and the end are written together.
                pieces = await self._store.events(id, after, _PIECES_AT_ONCE)
                if not pieces:
                    return
            for last, text in pieces:
                # The first may hold some that are not asked for.
                yield split_events(text)[after - last :]
                after = last
            await asyncio.sleep(0 if len(pieces) == _PIECES_AT_ONCE else _POLL_S)

    async def keep_up(self) -> None:
        """Ends what was abandoned, and deletes what has expired, again and again."""
        while True:
            try:
                await self.end_abandoned()
                while await self._store.delete_expired():
                    pass
            except Unavailable:
                logger.warning("The store does not answer; it will be asked again")
            await asyncio.sleep(_UPKEEP_PERIOD_S)

    async def end_abandoned(self) -> int:
        """Marks responses failed whose gateway is gone; returns how many."""
        now = self._clock()
        num_ended = 0
        for stored in await self._store.abandoned(now):
            body = failed_body(stored.body, Unavailable(_ABANDONED))
            events = []
            if stored.has_events:
                number = 1 + await self._store.last_event(stored.id)
                events = [(number, sse_event(TERMINAL_EVENTS["failed"], number, {"response": body}))]
            if await self._store.advance(stored.id, events, body, if_lease_before=now):
                logger.warning("Response %s was abandoned by its gateway", stored.id)
                num_ended += 1
        return num_ended

    async def _run(self, job: Job) -> None:
        making = asyncio.get_running_loop().create_task(self._make(job))
        try:
            while await self._write(job, has_ended=making.done()):
                await asyncio.wait({making}, timeout=_WRITE_PERIOD_S)
        finally:
            making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await making

    async def _make(self, job: Job) -> None:
        """From a request to a whole response, or a failed one."""
        run = job.run
        try:
            stream = await self._admitted(job)
            try:
                job.waiting += run.dequeued()
                async for events in stream:
                    job.waiting += run.take(events)
            finally:
                await stream.aclose()
        except Exception as error:  # Nobody waits for it: all that is left is to say so in the response.
            shown = to_client_error(error)
            if shown is not error:
                logger.exception("Response %s failed unexpectedly", job.stored.id)
            job.waiting += run.fail(shown)
        job.waiting += run.ended()

    async def _admitted(self, job: Job) -> ChatStream:
        """Waits while the workers are full: that is what the background is for."""
        while True:
            try:
                return await self._chat.start(job.chat, deadline_unix_s=job.deadline_unix_s, owner=job.stored.owner)
            except Overloaded as error:
                if job.deadline_unix_s is not None and self._clock() >= job.deadline_unix_s:
                    raise
                await asyncio.sleep(min(error.retry_after_s or _MAX_RETRY_S, _MAX_RETRY_S))

    async def _write(self, job: Job, *, has_ended: bool) -> bool:
        """Brings the store up to date; whether there is, or will be, more to write."""
        now, num_events, body = self._clock(), len(job.waiting), job.run.body
        if not has_ended and body["status"] not in ACTIVE_STATUSES:
            # Its last event is not there yet, and both are written together.
            body = job.written_body
        is_news = num_events > 0 or body is not job.written_body
        if not (is_news or has_ended or now - job.written_at >= _HEARTBEAT_S):
            return True
        try:
            is_active = await self._store.advance(
                job.stored.id,
                [(job.run.num_events - 1, "".join(job.waiting))] if job.waiting else [],
                body if body is not job.written_body else None,
                lease_expires=None if has_ended else now + LEASE_S,
            )
        except Unavailable:
            # After the lease the others will take it for abandoned, if they can reach the store.
            await asyncio.sleep(_HEARTBEAT_S)
            return now - job.written_at < LEASE_S
        job.written_body, job.written_at = body, now
        del job.waiting[:num_events]
        return is_active and not has_ended
