"""Bounds the time that a client may take: to send its request, and to read what is sent to it.

A client that is gone without a word (its network is) looks like one that reads nothing. Neither may keep a request, its
connection and what waits in it for longer than the limit; one that reads on, however slowly, may.
"""

import asyncio
from collections.abc import Callable

DEFAULT_CLIENT_TIMEOUT_S = 60.0


class SendTimer:
    """Calls `on_stall` when one sending takes longer than `timeout_s`; does nothing more then.

    There is a sending for every message of a stream, too often for a timer each: one looks after all of them.
    """

    def __init__(self, timeout_s: float, on_stall: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._since: float | None = None
        self._timer = self._loop.call_later(timeout_s, self._look)

    def begin(self) -> None:
        self._since = self._time()

    def end(self) -> None:
        self._since = None

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._time()
        due = (now if self._since is None else self._since) + self._timeout_s
        if due > now:
            self._timer = self._loop.call_at(due, self._look)
        else:
            self._on_stall()
