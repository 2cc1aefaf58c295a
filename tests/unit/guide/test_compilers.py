"""Threads that compile, without grammars."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from chorus_workers.guide.compilers import Compilation, Compilers


def test_what_is_done_before_anybody_looks_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine: the thread that submits goes on only when the work is done."""

    def submit(self: ThreadPoolExecutor, work: Any, *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    compilers = Compilers[int](lambda: 0.0, 1.0)
    compilations = [Compilation(lambda begin, i=i: i) for i in range(5)]  # type: ignore[misc]
    for compilation in compilations:
        compilers.submit(compilation)
    assert [compilation.future.result(0) for compilation in compilations] == [0, 1, 2, 3, 4]
    assert compilers.num_queued == 0 and not compilers.note_late()


def test_what_is_raised_is_told() -> None:
    compilers = Compilers[int](lambda: 0.0, 1.0)
    failing, working = Compilation(lambda begin: 1 // 0), Compilation(lambda begin: 1)
    compilers.submit(failing)
    compilers.submit(working)
    assert isinstance(failing.future.exception(30), ZeroDivisionError)
    assert working.future.result(30) == 1
    compilers.close()
