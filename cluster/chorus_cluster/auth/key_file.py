"""The key file while the server runs: whatever it says counts a second later, without a restart."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from chorus_cluster.auth.keys import KeyFileError, KeyRing, parse_keys

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0
_MAX_BYTES = 2**20


class KeyFile:
    """Keys of a file that is read again when it has changed. `clock` returns seconds.

    Where a changed file can't be used, the log says so, and the keys that were there stay. To take all away, leave it
    an empty list.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Errors: KeyFileError if the file can't be used as it is now."""
        self.path = path
        self._clock = clock
        self._state = self._stat()
        self._ring = self._read()
        # What the log said last.
        self._complaint = ""
        self._next_look = clock() + _PERIOD_S

    def ring(self) -> KeyRing:
        """The keys as of at most a second ago."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + _PERIOD_S
            self._look()
        return self._ring

    def _look(self) -> None:
        try:
            state = self._stat()
            if state == self._state:
                return
            # Whatever it holds: it is read again when it is another.
            self._state = state
            self._ring = self._read()
        except KeyFileError as error:
            if str(error) != self._complaint:
                logger.error("%s; the keys that it had before stay in force", error)
            self._complaint = str(error)
            return
        self._complaint = ""
        logger.info("%s has %d API keys now", self.path, len(self._ring))

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise self._unreadable(error) from None
        return found.st_ctime_ns, found.st_ino, found.st_size

    def _read(self) -> KeyRing:
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise self._unreadable(error) from None
        if len(content) > _MAX_BYTES:
            raise KeyFileError(f"{self.path}: it has more than {_MAX_BYTES} bytes")
        try:
            return parse_keys(content.decode())
        except UnicodeDecodeError:
            raise KeyFileError(f"{self.path}: it is not UTF-8") from None
        except KeyFileError as error:
            raise KeyFileError(f"{self.path}: {error}") from None

    def _unreadable(self, error: OSError) -> KeyFileError:
        return KeyFileError(f"can't read {self.path}: {error.strerror}")
