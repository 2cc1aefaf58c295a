"""The output file of a batch job, which is its journal too: what stands in it is done, all else is not.

A record is one `write` of one line to a file opened for appending, so a killed process leaves at most one torn line,
at the end, and the next run cuts it off. Records survive the process at once, and the machine after `sync`, which the
runner calls once a second: a row that a power cut takes is simply asked again. `flock` keeps a second run out and is
released by the kernel however the first one ends.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType

from chorus_cluster.batch.errors import OutputUnusable, OutputUnwritable
from chorus_cluster.batch.line_set import LineSet
from chorus_cluster.batch.lines import Line, parse_record_header, read_lines, record_prefix

# Responses may be longer than requests; a longer line than this was not written by a journal.
_MAX_RECORD_BYTES = 2**30


class Journal:
    """An open, locked output file.

    `done` holds the line numbers of the records it has; `num_failed` counts those that are no success.
    """

    def __init__(self, path: Path, fingerprint: str, num_lines: int) -> None:
        """Opens or creates `path`. Raises OutputUnusable where it isn't the output of this very input."""
        self.path = path
        self.fingerprint = fingerprint
        self.done = LineSet(num_lines)
        self.num_failed = 0
        self._num_lines = num_lines
        self._is_dirty = False
        self._descriptor = self._open_locked()
        try:
            self._end = self._recover()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, line_number: int, record: bytes, *, succeeded: bool) -> None:
        """Writes one record (with its newline). Raises OutputUnwritable, with the file as it was before."""
        if line_number in self.done:
            raise ValueError(f"line {line_number} is done already")
        try:
            self._write(record)
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next run cuts the torn line
                os.ftruncate(self._descriptor, self._end)
            raise OutputUnwritable(f"{self.path} can't be written: {error.strerror}") from error
        self._end += len(record)
        self._is_dirty = True
        self.done.add(line_number)
        self.num_failed += not succeeded

    def sync(self) -> None:
        """Brings the records to the disk. May run in a thread beside `append`."""
        if self._is_dirty:
            self._is_dirty = False
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                raise OutputUnwritable(f"{self.path} can't be written: {error.strerror}") from error

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _open_locked(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise OutputUnusable(f"{self.path} can't be opened for writing: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OutputUnusable(f"{self.path} is not a regular file")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputUnusable(f"{self.path} is being written by another run of this job") from error
        except OSError as error:  # of a network file system without locks
            os.close(descriptor)
            raise OutputUnusable(f"{self.path} can't be locked: {error.strerror}") from error
        except OutputUnusable:
            os.close(descriptor)
            raise
        return descriptor

    def _recover(self) -> int:
        """Reads what is done, cuts a torn last line, and returns the file's length."""
        end = 0
        with open(os.dup(self._descriptor), "rb", buffering=2**20) as file:
            file.seek(0)
            for line in read_lines(file, _MAX_RECORD_BYTES):
                if not line.is_terminated and self._is_torn_record(line):
                    os.ftruncate(self._descriptor, line.start)
                    break
                self._admit(line)
                end = line.end
        return end

    def _is_torn_record(self, line: Line) -> bool:
        # Zeros: a file system may have recorded the file's new length before a power cut, but not its content.
        if line.content is None:
            return False
        start = line.content.rstrip(b"\0")
        prefix = record_prefix(self.fingerprint)
        return start[: len(prefix)] == prefix[: len(start)]

    def _admit(self, line: Line) -> None:
        header = None if line.content is None else parse_record_header(line.content)
        if header is None:
            raise OutputUnusable(
                f"{self.path}, line {line.number}, is not a record of this batch job: choose another output file"
            )
        if header.fingerprint != self.fingerprint:
            raise OutputUnusable(
                f"{self.path} belongs to another input, or the input has changed since: choose another output file"
            )
        if header.line_number > self._num_lines or header.line_number in self.done:
            raise OutputUnusable(
                f"{self.path}, line {line.number}, repeats or invents row {header.line_number}: it has been edited"
            )
        self.done.add(header.line_number)
        self.num_failed += not header.succeeded

    def _write(self, record: bytes) -> None:
        written = os.write(self._descriptor, record)
        while written < len(record):  # a full disk takes a part, then refuses
            written += os.write(self._descriptor, memoryview(record)[written:])
