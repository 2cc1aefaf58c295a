"""Works off the rows of a batch job: a bounded number at a time, each written once, trouble waited out."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chorus_cluster.batch.errors import BatchError, ServerGone
from chorus_cluster.batch.journal import Journal
from chorus_cluster.batch.lines import (
    MAX_LINE_BYTES,
    BatchRequest,
    RowError,
    encode_error,
    encode_response,
    parse_request,
    read_lines,
    repeated_custom_id,
)
from chorus_cluster.batch.sender import Reply, Sender, Unreachable
from chorus_cluster.batch.survey import Survey, check_unchanged, open_input

_SYNC_INTERVAL_S = 1.0
# A server is asked again after these: overload, a gateway without a worker, a proxy without a gateway.
_RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
_OVERLOADED_STATUS = 429


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How trouble is waited out. Delays double from `first_delay_s` to `max_delay_s`, with jitter.

    A row that has failed `max_attempts` times is given up on if the server is there, and the last answer is its record.
    A server that has given nothing but trouble for `patience_s` and isn't ready ends the run.
    """

    max_attempts: int = 12
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    max_retry_after_s: float = 600.0
    patience_s: float = 300.0


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """Rows and request bytes under way at once (one row may exceed the bytes alone), and the input's longest line."""

    concurrency: int = 32
    in_flight_bytes: int = 256 * 2**20
    max_line_bytes: int = MAX_LINE_BYTES
    # How long rows that are with the server may still take once the job is asked to stop.
    stop_grace_s: float = 30.0


@dataclass(slots=True)
class Counts:
    """What a progress display shows. `trouble` says why the job waits, while it does."""

    num_rows: int
    num_done: int
    num_failed: int
    num_retries: int = 0
    trouble: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.num_done == self.num_rows


class _Stopped(Exception):
    """The job was asked to stop while a row waited, or the grace of those under way is over."""


class _ByteBudget:
    """Bounds the bytes of concurrent holders. One that is larger than the whole budget has it alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._change = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        async with self._change:
            await self._change.wait_for(lambda: not self._held or self._held + size <= self._size)
            self._held += size
        try:
            yield
        finally:
            async with self._change:
                self._held -= size
                self._change.notify_all()


class Runner:
    """One run of a job."""

    def __init__(
        self,
        path: Path,
        survey: Survey,
        journal: Journal,
        sender: Sender,
        *,
        limits: RunnerLimits | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._path = path
        self._survey = survey
        self._journal = journal
        self._sender = sender
        self._limits = limits or RunnerLimits()
        self._policy = policy or RetryPolicy()
        self._jitter = random.Random()
        self._rows = self._pending_rows()
        # One thread reads: skipping what is done, or parsing a huge line, must not stall the rows under way.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batch-reader")
        self._budget = _ByteBudget(self._limits.in_flight_bytes)
        self._stop = asyncio.Event()
        # No request starts before this time: the server's Retry-After holds for the whole job.
        self._not_before = 0.0
        self._trouble_since: float | None = None
        self.counts = Counts(survey.num_rows, len(journal.done), journal.num_failed)

    def stop(self) -> None:
        """Takes no further row, lets those that are with the server finish within the grace, and drops the others."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    async def run(self) -> bool:
        """Whether every row is done; False after `stop`. Raises BatchError where the job can't go on."""
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [group.create_task(self._sync_regularly()), group.create_task(self._end_grace())]
                async with asyncio.TaskGroup() as workers:
                    for _ in range(self._limits.concurrency):
                        workers.create_task(self._work())
                for watcher in watchers:
                    watcher.cancel()
        except* _Stopped:
            pass
        except* BatchError as errors:
            raise _first(errors) from None
        finally:
            self._reader.submit(self._rows.close)
            self._reader.shutdown()
            await asyncio.to_thread(self._journal.sync)
        return self.counts.is_complete

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            row = await loop.run_in_executor(self._reader, next, self._rows, None)
            if row is None:
                return
            number, content = row
            if isinstance(content, RowError):
                self._record_error(number, content)
                continue
            async with self._budget.hold(len(content.body)):
                if self._stop.is_set():  # while this row waited for room
                    return
                try:
                    await self._answer(number, content)
                except _Stopped:
                    return

    def _pending_rows(self) -> Generator[tuple[int, BatchRequest | RowError]]:
        with open_input(self._path) as file:
            for line in read_lines(file, self._limits.max_line_bytes):
                if line.number > self._survey.num_lines:
                    break
                if line.number in self._journal.done or line.is_blank:
                    continue
                content = parse_request(line, self._limits.max_line_bytes)
                if line.number in self._survey.repeats and isinstance(content, BatchRequest):
                    content = repeated_custom_id(line.number, content.custom_id)
                yield line.number, content
            check_unchanged(self._survey, file, self._path)

    async def _answer(self, number: int, request: BatchRequest) -> None:
        """Sends a request until it has an answer to keep. Raises _Stopped or ServerGone."""
        attempt = 0
        while True:
            await self._pause_until(self._not_before)
            attempt += 1
            reply: Reply | Unreachable
            try:
                reply = await self._sender.send(request.body)
            except Unreachable as error:
                reply = error
            if isinstance(reply, Reply) and reply.status not in _RETRYABLE_STATUSES:
                self._end_trouble()
                return self._record_reply(number, request, reply)
            # Who refuses for overload is there, whatever its health says.
            is_tried = attempt >= self._policy.max_attempts
            if is_tried and (_is_overload(reply) or await self._sender.is_ready()):
                return self._give_up(number, request, reply)
            await self._wait_out(attempt, reply)

    async def _wait_out(self, attempt: int, reply: Reply | Unreachable) -> None:
        self.counts.num_retries += 1
        now = time.monotonic()
        self.counts.trouble = _describe(reply)
        if _is_overload(reply):
            self._trouble_since = None  # busy is not gone
        elif self._trouble_since is None:
            self._trouble_since = now
        elif now - self._trouble_since > self._policy.patience_s:
            if not await self._sender.is_ready():
                raise ServerGone(f"no useful answer for {self._policy.patience_s:g} s: {_describe(reply)}")
            self._trouble_since = None
        retry_after = reply.retry_after_s if isinstance(reply, Reply) else None
        if retry_after is not None:
            self._not_before = max(self._not_before, now + min(retry_after, self._policy.max_retry_after_s))
        delay = min(self._policy.first_delay_s * 2 ** (attempt - 1), self._policy.max_delay_s)
        await self._pause_until(max(self._not_before, now) + delay * self._jitter.uniform(0.5, 1.0))

    async def _pause_until(self, instant: float) -> None:
        while (remaining := instant - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), remaining)
            if self._stop.is_set():
                raise _Stopped

    def _end_trouble(self) -> None:
        self._trouble_since = None
        self.counts.trouble = None

    def _give_up(self, number: int, request: BatchRequest, reply: Reply | Unreachable) -> None:
        if isinstance(reply, Reply):
            self._record_reply(number, request, reply)
        else:
            message = f"no answer in {self._policy.max_attempts} attempts: {reply}"
            self._record_error(number, RowError("server_unreachable", message, request.custom_id))

    def _record_reply(self, number: int, request: BatchRequest, reply: Reply) -> None:
        succeeded, record = encode_response(self._survey.fingerprint, number, request.custom_id, reply)
        self._record(number, record, succeeded=succeeded)

    def _record_error(self, number: int, error: RowError) -> None:
        self._record(number, encode_error(self._survey.fingerprint, number, error), succeeded=False)

    def _record(self, number: int, record: bytes, *, succeeded: bool) -> None:
        self._journal.append(number, record, succeeded=succeeded)
        self.counts.num_done = len(self._journal.done)
        self.counts.num_failed = self._journal.num_failed

    async def _sync_regularly(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_INTERVAL_S)
            await asyncio.to_thread(self._journal.sync)

    async def _end_grace(self) -> None:
        await self._stop.wait()
        await asyncio.sleep(self._limits.stop_grace_s)
        raise _Stopped


def _first(errors: ExceptionGroup[BatchError]) -> BatchError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BatchError)
    return error


def _is_overload(reply: Reply | Unreachable) -> bool:
    return isinstance(reply, Reply) and reply.status == _OVERLOADED_STATUS


def _describe(reply: Reply | Unreachable) -> str:
    return f"the server answers {reply.status}" if isinstance(reply, Reply) else str(reply)
