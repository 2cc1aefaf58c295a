"""The replica's side of the engine process: starts it, submits to it, and hands out each request's tokens.

A step's output arrives as one message for all requests. A stream's first token is delivered at once; later ones are
merged for `merge_interval_s`, which is what makes the path to the gateway cheap (docs/decisions/003).
"""

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from chorus_workers.config import WorkerConfig
from chorus_workers.engine.messages import Abort, Decoder, Failed, Ready, Report, Submit, encode
from chorus_workers.engine.output import StepOutput
from chorus_workers.engine.request import GenerationRequest, Refusal, RefusalReason, Refused
from chorus_workers.engine.stats import EngineLoad, EngineStats
from chorus_workers.engine.stream import EngineDeadError, TokenStream
from chorus_workers.runner.base import RunnerInfo

logger = logging.getLogger(__name__)

# Streams due this much later are woken by the same timer.
_TIMER_SLACK_S = 0.001
# A step that takes longer than this hangs.
_STEP_TIMEOUT_S = 300.0
_EXIT_TIMEOUT_S = 5.0


class EngineStartError(Exception):
    """The engine process could not start; the message says why, in the words of whoever failed."""


class AsyncEngine:
    """One engine process. All methods belong to the event loop that started it."""

    def __init__(self, process: subprocess.Popen[bytes], merge_interval_s: float) -> None:
        self.load = EngineLoad()
        self.stats = EngineStats()
        # Called once, with the reason, when the engine process fails while it should run.
        self.on_death: Callable[[str], None] = lambda _: None
        self._process = process
        self._merge_interval_s = merge_interval_s
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[RunnerInfo] = self._loop.create_future()
        self._connection: _Connection | None = None
        self._numbers = itertools.count()
        # By the engine's name for a request. A client's id may come again while the engine still ends its predecessor.
        self._streams: dict[str, TokenStream] = {}
        self._by_client_id: dict[str, TokenStream] = {}
        self._held: set[TokenStream] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = time.monotonic()
        self._death: str | None = None
        self._closing = False

    @classmethod
    async def start(cls, config: WorkerConfig) -> "AsyncEngine":
        """Starts the process and waits until its model is loaded. Errors: EngineStartError."""
        ours, theirs = socket.socketpair()
        with theirs:
            engine = cls(_spawn(theirs), config.merge_interval_s)
        await engine._loop.create_unix_connection(lambda: _Connection(engine), sock=ours)
        try:
            engine._send(config)
            await engine._ready
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def info(self) -> RunnerInfo:
        return self._ready.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_closed(self) -> bool:
        return self._closing

    @property
    def num_streams(self) -> int:
        """Requests submitted and neither ended nor closed."""
        return len(self._streams)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Sends a request to the engine. Its own refusals come out of the stream's first read.

        Errors: Refused, when the id is in use or the engine is not there.
        """
        if self._death is not None or self._closing:
            raise Refused(Refusal(RefusalReason.UNAVAILABLE, "the worker is shutting down or has failed"))
        client_id = request.request_id
        if client_id in self._by_client_id:
            message = "a request of this id is running already"
            raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, message, field="request_id"))
        if not self._streams:
            # An idle engine says nothing: its silence counts from here.
            self._heard_at = time.monotonic()
        engine_id = str(next(self._numbers))
        stream = TokenStream(self, engine_id, client_id)
        self._streams[engine_id] = self._by_client_id[client_id] = stream
        self._send(Submit(replace(request, request_id=engine_id)))
        return stream

    def abort(self, client_id: str) -> None:
        """Ends a request; its stream says so. An unknown id is not an error."""
        if stream := self._by_client_id.get(client_id):
            self._send(Abort(stream.engine_id))

    def forget(self, stream: TokenStream, *, abort: bool) -> None:
        """For streams: nobody reads it any more."""
        if self._streams.pop(stream.engine_id, None) is None:
            return
        del self._by_client_id[stream.client_id]
        self._held.discard(stream)
        if abort and self._death is None:
            self._send(Abort(stream.engine_id))

    def check_health(self) -> None:
        """Errors: EngineDeadError when the process failed, or hangs in a step."""
        if self._death is not None:
            raise EngineDeadError(self._death)
        silence = time.monotonic() - self._heard_at
        if self._streams and silence > _STEP_TIMEOUT_S:
            raise EngineDeadError(f"the engine has been silent for {silence:.0f} s with requests running")

    async def close(self) -> None:
        """Ends the process, and every stream with it."""
        self._closing = True
        if self._connection is not None:
            self._connection.close()
        try:
            await asyncio.to_thread(self._process.wait, _EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._fail("the worker shuts down")

    def kill(self) -> None:
        """Ends the process at once, from any thread, loop or none."""
        self._process.kill()
        self._process.wait()

    def next_delivery_at(self) -> float:
        """For streams: when the next delivery is due, given that one is made now."""
        return self._loop.time() + self._merge_interval_s

    def _send(self, message: object) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _connected(self, connection: "_Connection") -> None:
        self._connection = connection

    def _received(self, message: object) -> None:
        self._heard_at = time.monotonic()
        match message:
            case StepOutput():
                self._dispatch(message)
            case Report(load, stats):
                self.load, self.stats = load, stats
            case Ready(info):
                self._ready.set_result(info)
            case Failed(reason):
                self._fail(reason)
            case _:
                raise TypeError(f"unknown message {type(message).__name__}")

    def _lost(self) -> None:
        """The process is gone, or about to be."""
        if not self._closing:
            self._fail("the engine process ended unexpectedly")
        self._connection = None

    def _fail(self, reason: str) -> None:
        if self._death is not None:
            return
        self._death = reason
        if not self._ready.done():
            self._ready.set_exception(EngineStartError(reason))
        for stream in list(self._streams.values()):
            stream.fail(EngineDeadError(reason))
        if not self._closing:
            logger.error("engine process %d failed: %s", self._process.pid, reason)
            self.on_death(reason)

    def _dispatch(self, output: StepOutput) -> None:
        streams = self._streams
        touched: set[TokenStream] = set()
        for engine_id, (queue_time, num_cached_tokens) in output.started.items():
            if stream := streams.get(engine_id):
                stream.start(queue_time, num_cached_tokens)
        for index, (engine_id, token_id) in enumerate(zip(output.request_ids, output.token_ids, strict=True)):
            if stream := streams.get(engine_id):
                stream.add(token_id, output.logprobs.get(index) if output.logprobs else None)
                touched.add(stream)
        for engine_id, (reason, message) in output.finished.items():
            if stream := streams.get(engine_id):
                stream.finish(reason, message)
                touched.add(stream)
        for engine_id, refusal in output.refused.items():
            if stream := streams.get(engine_id):
                stream.fail(Refused(refusal))
        self._wake_due(touched)

    def _wake_due(self, streams: set[TokenStream]) -> None:
        """Wakes the readers of streams that are due, and holds the others until they are."""
        due_until = self._loop.time() + _TIMER_SLACK_S
        for stream in streams:
            if stream.due_at <= due_until:
                self._held.discard(stream)
                stream.wake()
            else:
                self._held.add(stream)
        if self._held and self._timer is None:
            due_at = min(stream.due_at for stream in self._held)
            self._timer = self._loop.call_at(due_at, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._wake_due(set(self._held))


class _Connection(asyncio.Protocol):
    """The replica's end of the socket."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports, which are Ray's, are no subclasses of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._engine._connected(self)

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._engine._received(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine._lost()

    def send(self, message: object) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """A fresh interpreter, with this one's import path: a fork would copy threads' locks, and multiprocessing's spawn
    would import the main module, which in a Ray worker is Ray's own."""
    fd = theirs.fileno()
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "chorus_workers.engine.process", str(fd), str(os.getpid())],
        pass_fds=[fd],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )
