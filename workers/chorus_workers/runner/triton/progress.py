"""Tells how far loading is: a bar where standard error is a terminal, else a line in the log every few seconds."""

import logging
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 5.0
_GB = 1e9


class LoadProgress:
    """Counts bytes within a `with` block, whose end logs the total and the speed."""

    def __init__(
        self, total_bytes: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """total_bytes: what there is to load, about. console: standard error by default."""
        console = console or Console(stderr=True)
        columns = (TextColumn("Loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total_bytes)
        self._is_drawn = console.is_terminal
        self._clock = clock
        self._total, self._done = total_bytes, 0
        self._begun_at = self._reported_at = clock()

    def __enter__(self) -> "LoadProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if error is None:
            seconds = self._clock() - self._begun_at
            logger.info("loaded %.1f GB in %.1f s (%.1f GB/s)", self._done / _GB, seconds, self._speed(seconds))

    def add(self, num_bytes: int) -> None:
        """So many more bytes are on their way to the device."""
        self._done += num_bytes
        self._bar.advance(self._task, num_bytes)
        now = self._clock()
        if not self._is_drawn and now - self._reported_at >= _REPORT_INTERVAL_S:
            self._reported_at = now
            speed = self._speed(now - self._begun_at)
            logger.info("loading: %.1f of %.1f GB (%.1f GB/s)", self._done / _GB, self._total / _GB, speed)

    def _speed(self, seconds: float) -> float:
        """GB/s since the beginning."""
        return self._done / _GB / max(seconds, 1e-9)
