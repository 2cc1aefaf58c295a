"""The engine's own process: `python -m chorus_workers.engine.process FD`, started by AsyncEngine.

Steps run back to back while there are requests; what came in meanwhile is taken up between two steps. Without requests
the process sleeps in poll(). It ends when the socket does, so it never outlives its replica; should a step hang, the
kernel's parent-death signal ends it.
"""

import ctypes
import logging
import os
import select
import signal
import socket
import sys
import time

from chorus_workers.config import FAKE_MODEL_PREFIX, WorkerConfig
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.messages import Abort, Decoder, Failed, Ready, Report, Submit, encode
from chorus_workers.runner.base import Runner, RunnerInfo
from chorus_workers.runner.fake import FakeModel, FakeRunner

# Run as a module, its name is __main__.
logger = logging.getLogger("chorus_workers.engine.process")

_REPORT_INTERVAL_S = 0.25
# How often it is looked whether a grammar takes too long, while nothing else is to be done.
_GRAMMARS_INTERVAL_S = 0.05
_RECEIVE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


class ReplicaGone(Exception):
    """The replica closed its end, or died."""


class Link:
    """The process's end of the socket. Sending never blocks a step: what the replica doesn't take yet is kept."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        # Readable while somebody wants the engine's thread to look up.
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._decoder = Decoder()
        self._unsent = bytearray()

    def send(self, message: object) -> None:
        self._unsent += encode(message)
        self._flush()

    def wake(self) -> None:
        """Ends the sleep of `receive`, or the next one; from any thread."""
        os.eventfd_write(self._wakeup, 1)

    def receive(self, *, wait: bool, timeout_s: float | None = None) -> list[object]:
        """Messages that are here; with `wait`, sleeps until there is one, somebody wakes it, or that time has passed.

        Errors: ReplicaGone.
        """
        if self._unsent:
            self._flush()
        messages: list[object] = []
        while True:
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                if messages or not wait:
                    return messages
                self._wait(select.POLLIN | (select.POLLOUT if self._unsent else 0), timeout_s)
                self._flush()
                if self._was_woken() or timeout_s is not None:
                    return messages
                continue
            except ConnectionResetError as error:
                raise ReplicaGone from error
            if not data:
                raise ReplicaGone
            messages.extend(self._decoder.feed(data))

    def drain(self, timeout_s: float) -> None:
        """Sends what is left, for a process about to end."""
        end = time.monotonic() + timeout_s
        while self._unsent and (left := end - time.monotonic()) > 0:
            self._wait(select.POLLOUT, left)
            self._flush()

    def _wait(self, events: int, timeout_s: float | None = None) -> None:
        # Not select(): the descriptor's number is the replica's, and may be beyond what that takes.
        poll = select.poll()
        poll.register(self._sock, events)
        if events & select.POLLIN:
            poll.register(self._wakeup, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)

    def _was_woken(self) -> bool:
        try:
            os.eventfd_read(self._wakeup)
        except BlockingIOError:
            return False
        return True

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ReplicaGone from error


def load_runner(config: WorkerConfig) -> Runner:
    """Loads the model. Errors: CheckpointError, ValueError; RunnerError when another shard doesn't come up."""
    if config.model.startswith(FAKE_MODEL_PREFIX):
        return FakeRunner(
            FakeModel.from_config(config.model),
            max_model_len=config.max_model_len,
            block_size=config.block_size,
            num_blocks=config.num_kv_blocks,
            num_slots=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
        )
    # Here, so that a fake engine starts without PyTorch.
    from chorus_workers.runner.factory import create_runner, runner_config

    return create_runner(runner_config(config))


def serve(link: Link, engine: Engine, info: RunnerInfo) -> None:
    """Runs the engine until the replica is gone. Errors: ReplicaGone; RunnerError."""
    engine.guides.on_news = link.wake
    link.send(Ready(info))
    reported_at = time.monotonic()
    link.send(Report(engine.load(), engine.stats))
    while True:
        timeout_s = _GRAMMARS_INTERVAL_S if engine.guides.num_waiting else None
        for message in link.receive(wait=not engine.has_requests, timeout_s=timeout_s):
            match message:
                case Submit(request):
                    engine.add(request)
                case Abort(request_id):
                    engine.abort(request_id)
                case _:
                    raise TypeError(f"unknown message {type(message).__name__}")
        output = engine.step()
        now = time.monotonic()
        if not engine.has_requests:
            engine.check_integrity()
        # Before the output: who has seen the last stream end finds an idle engine.
        if now - reported_at >= _REPORT_INTERVAL_S or not engine.has_requests:
            reported_at = now
            link.send(Report(engine.load(), engine.stats))
        if output:
            link.send(output)


def run(sock: socket.socket) -> None:
    """The process's life. A failure is reported to the replica and raised."""
    link = Link(sock)
    try:
        try:
            (config,) = link.receive(wait=True)
            if not isinstance(config, WorkerConfig):
                raise TypeError(f"expected a WorkerConfig first, not {type(config).__name__}")
            runner = load_runner(config)
            engine = Engine(
                runner,
                max_queued_requests=config.max_queued_requests,
                clock=time.monotonic,
                prefix_cache=config.prefix_cache,
                step_budget_s=config.step_budget_s,
                grammar_timeout_s=config.grammar_timeout_s,
            )
            if not config.model.startswith(FAKE_MODEL_PREFIX):
                engine.guides.load()
            try:
                serve(link, engine, engine.info)
            except ReplicaGone:
                engine.close()
                raise
        except ReplicaGone:
            raise
        except Exception as error:
            # And no more: shards that are in the middle of a step would not hear of an orderly end before they give
            # up waiting for this one, but see its connections close when the process ends.
            link.send(Failed(f"{type(error).__name__}: {error}"))
            link.drain(timeout_s=1)
            raise
    except ReplicaGone:
        logger.debug("the replica is gone, the engine ends")


def main() -> None:
    # A Ctrl-C in the terminal reaches the whole process group; the replica decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(sys.argv[2])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        run(sock)


if __name__ == "__main__":
    main()
