"""Threads that compile grammars beside the engine's loop: few at a time, each for a limited time.

A compilation can't be stopped, but its fuel and sizes are limited, so it ends by itself. One that takes longer than
anybody is to wait is late: whoever waits for it is told so, and another one may run in its place, unless too many are
late. So slow grammars don't keep quick ones waiting, and there is an end to the threads that they hold.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")
# Of those that are not late.
NUM_COMPILERS = 2
# Late ones whose places others take.
MAX_LATE = 2


class Compilation(Generic[Result]):
    """A grammar that is, was or will be compiled."""

    def __init__(self, compile: Callable[[Callable[[], None]], Result]) -> None:
        """compile: calls what it is given when the time that is limited begins."""
        self.compile = compile
        self.future: Future[Result] = Future()
        # Seconds of the clock.
        self.began_at: float | None = None
        self.is_late = False

    @property
    def is_settled(self) -> bool:
        """Whether nobody is to wait for it any more. It may still be done later, for others."""
        return self.is_late or self.future.done()


class Compilers(Generic[Result]):
    """Runs compilations in the order in which they come."""

    def __init__(self, clock: Callable[[], float], timeout_s: float) -> None:
        """timeout_s: how long one may take until it is late."""
        self._clock = clock
        self._timeout_s = timeout_s
        self._lock = Lock()
        self._queue: deque[Compilation[Result]] = deque()
        self._running: set[Compilation[Result]] = set()
        self._threads = ThreadPoolExecutor(NUM_COMPILERS + MAX_LATE, thread_name_prefix="grammar")

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def submit(self, compilation: Compilation[Result]) -> None:
        with self._lock:
            self._queue.append(compilation)
        self._dispatch()

    def note_late(self) -> bool:
        """Notes which compilations have become late since the last time. Whether any has."""
        with self._lock:
            end = self._clock() - self._timeout_s
            late = [c for c in self._running if not c.is_late and c.began_at is not None and c.began_at <= end]
            for compilation in late:
                compilation.is_late = True
        self._dispatch()
        return bool(late)

    def close(self) -> None:
        """Ends the threads, when they have done what they are at."""
        with self._lock:
            self._queue.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        with self._lock:
            started = [(each, self._threads.submit(each.compile, self._begin(each))) for each in self._take_places()]
        # Not under the lock: what is done already is finished at once, by this thread.
        for compilation, running in started:
            running.add_done_callback(self._finish(compilation))

    def _take_places(self) -> Iterator[Compilation[Result]]:
        """Takes from the queue those that may run now."""
        while self._queue:
            num_late = sum(compilation.is_late for compilation in self._running)
            if len(self._running) - min(num_late, MAX_LATE) >= NUM_COMPILERS:
                return
            compilation = self._queue.popleft()
            self._running.add(compilation)
            yield compilation

    def _begin(self, compilation: Compilation[Result]) -> Callable[[], None]:
        def begin() -> None:
            compilation.began_at = self._clock()

        return begin

    def _finish(self, compilation: Compilation[Result]) -> Callable[[Future[Result]], None]:
        def finish(done: Future[Result]) -> None:
            if done.cancelled():
                compilation.future.cancel()
                return
            with self._lock:
                self._running.remove(compilation)
            self._dispatch()
            if (error := done.exception()) is not None:
                compilation.future.set_exception(error)
            else:
                compilation.future.set_result(done.result())

        return finish
