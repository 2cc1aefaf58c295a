import contextlib
import errno
import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus_cluster.batch.errors import OutputUnusable, OutputUnwritable
from chorus_cluster.batch.journal import Journal
from chorus_cluster.batch.lines import RowError, encode_error, encode_response
from chorus_cluster.batch.sender import Reply

FINGERPRINT = "0123456789abcdef"
NUM_LINES = 20


def record(number: int, text: str = "x", fingerprint: str = FINGERPRINT) -> bytes:
    return encode_response(fingerprint, number, f"row-{number}", Reply(200, b'{"text": "%b"}' % text.encode(), "r"))[1]


def open_journal(path: Path) -> Journal:
    return Journal(path, FINGERPRINT, NUM_LINES)


def done(journal: Journal) -> set[int]:
    return {number for number in range(NUM_LINES + 1) if number in journal.done}


def test_what_was_appended_is_done_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "OUT.jsonl"
    with open_journal(path) as journal:
        journal.append(3, record(3), succeeded=True)
        journal.append(1, encode_error(FINGERPRINT, 1, RowError("c", "m")), succeeded=False)
        assert path.read_bytes().count(b"\n") == 2  # at once, not when closed
    with open_journal(path) as journal:
        assert done(journal) == {1, 3}
        assert journal.num_failed == 1
        with pytest.raises(ValueError, match="line 3 is done already"):
            journal.append(3, record(3), succeeded=True)


@given(
    numbers=st.lists(st.integers(1, NUM_LINES), unique=True, min_size=1),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), max_size=6),
)
def test_torn_writes_lose_and_repeat_nothing(
    numbers: list[int], cuts: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Runs that die at any byte of a write: each next run does what is missing; in the end each row is there once."""
    path = tmp_path_factory.mktemp("journal") / "OUT.jsonl"
    for share, num_whole in cuts:
        with open_journal(path) as journal:
            before = path.read_bytes()
            pending = [number for number in numbers if number not in journal.done]
        whole, torn = pending[:num_whole], pending[num_whole : num_whole + 1]
        data = b"".join(record(number) for number in whole)
        for number in torn:
            data += record(number)[: int(share * (len(record(number)) - 1))]
        path.write_bytes(before + data)
        with open_journal(path) as journal:
            assert done(journal) == set(numbers) - set(pending[num_whole:])
    with open_journal(path) as journal:
        for number in numbers:
            if number not in journal.done:
                journal.append(number, record(number), succeeded=True)
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(record(number) for number in numbers)


@pytest.mark.parametrize("tail", [b"\0" * 4096, record(2)[:30] + b"\0" * 100, b"{", record(2)[:-1]])
def test_a_tail_as_a_crash_leaves_it_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "OUT.jsonl"
    path.write_bytes(record(1) + tail)
    with open_journal(path) as journal:
        assert done(journal) == {1}
    assert path.read_bytes() == record(1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"my diary\n", "line 1, is not a record"),
        (b"my diary", "line 1, is not a record"),
        (record(1) + b"notes", "line 2, is not a record"),
        (record(1) + b"\n" + record(2), "line 2, is not a record"),
        (record(1)[:40] + record(2), "line 1, is not a record"),
        (record(1)[:-20] + b"\0" * 19 + b"\n" + record(2), "line 1, is not a record"),
        (record(1, fingerprint="f" * 16), "another input, or the input has changed"),
        (record(1) + record(2) + record(1), "line 3, repeats or invents row 1"),
        (record(NUM_LINES + 1), "repeats or invents row 21"),
    ],
)
def test_a_file_that_is_not_this_jobs_is_refused_and_left_alone(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "OUT.jsonl"
    path.write_bytes(content)
    with pytest.raises(OutputUnusable, match=words):
        open_journal(path)
    assert path.read_bytes() == content


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "OUT.jsonl"
    with open_journal(path), pytest.raises(OutputUnusable, match="another run"):
        open_journal(path)
    open_journal(path).close()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputUnusable, match="can't be locked: No locks available"):
        open_journal(tmp_path / "OUT.jsonl")


def test_places_that_hold_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputUnusable, match="No such file"):
        open_journal(tmp_path / "none" / "OUT.jsonl")
    with pytest.raises(OutputUnusable, match="Is a directory"):
        open_journal(tmp_path)
    with pytest.raises(OutputUnusable, match="not a regular file"):
        open_journal(Path(os.devnull))


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail part way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_the_run_with_whole_records_only(tmp_path: Path) -> None:
    path = tmp_path / "OUT.jsonl"
    with open_journal(path) as journal:
        journal.append(1, record(1), succeeded=True)
        with file_size_limit(len(record(1)) + 10), pytest.raises(OutputUnwritable, match="File too large"):
            journal.append(2, record(2), succeeded=True)
        assert path.read_bytes() == record(1)
        journal.append(2, record(2), succeeded=True)
    assert path.read_bytes() == record(1) + record(2)
