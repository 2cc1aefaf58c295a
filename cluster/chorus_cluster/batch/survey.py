"""The first reading of an input file: what it is, how much there is to do, and which custom_ids repeat."""

import hashlib
import os
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from chorus_cluster.batch.errors import InputUnusable
from chorus_cluster.batch.line_set import LineSet
from chorus_cluster.batch.lines import MAX_LINE_BYTES, Line, custom_id_of, read_lines


@dataclass(frozen=True, slots=True)
class Survey:
    """What a job knows of its input. Blank lines are lines, but not rows."""

    fingerprint: str
    """16 hexadecimal digits of the content's SHA-256."""
    num_lines: int
    num_rows: int
    repeats: LineSet
    """Lines whose custom_id an earlier line has used."""
    size: int
    mtime_ns: int


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """The input, opened for reading. Raises InputUnusable unless it is a regular file, since it is read twice."""
    try:
        if path.is_fifo():  # opening it would wait for its other end
            raise InputUnusable(f"{path} is not a regular file")
        file = path.open("rb", buffering=2**20)
    except OSError as error:
        raise InputUnusable(f"{path} can't be read: {error.strerror}") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputUnusable(f"{path} is not a regular file")
        yield file


def survey_input(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Survey:
    """Reads the whole input once (twice where hashes of custom_ids collide), at 8 bytes of memory a row."""
    with open_input(path) as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256()
        num_lines = num_rows = 0
        hashes = array("q")
        for line in read_lines(file, max_line_bytes, digest):
            num_lines += 1
            num_rows += not line.is_blank
            if (custom_id := _custom_id(line)) is not None:
                hashes.append(hash(custom_id))
        repeats = LineSet(num_lines)
        if suspects := _values_that_repeat(hashes):
            file.seek(0)
            _add_repeats(repeats, suspects, file, max_line_bytes)
        survey = Survey(digest.hexdigest()[:16], num_lines, num_rows, repeats, status.st_size, status.st_mtime_ns)
        check_unchanged(survey, file, path)
        return survey


def check_unchanged(survey: Survey, file: IO[bytes], path: Path) -> None:
    """Raises InputUnusable if the open input has been written to since the survey."""
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (survey.size, survey.mtime_ns):
        raise InputUnusable(f"{path} changed while it was read: start again with a new output file")


def _custom_id(line: Line) -> str | None:
    return None if line.content is None or line.is_blank else custom_id_of(line.content)


def _values_that_repeat(hashes: "array[int]") -> frozenset[int]:
    if len(hashes) < 2:
        return frozenset()
    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    return frozenset(values[1:][values[1:] == values[:-1]].tolist())


def _add_repeats(repeats: LineSet, suspects: frozenset[int], file: IO[bytes], max_line_bytes: int) -> None:
    # Equal hashes only make a suspect: the ids themselves decide, and memory holds only those that are suspected.
    seen: set[str] = set()
    for line in read_lines(file, max_line_bytes):
        custom_id = _custom_id(line)
        if custom_id is None or hash(custom_id) not in suspects:
            continue
        if custom_id in seen:
            repeats.add(line.number)
        seen.add(custom_id)
