"""Grammars that take long to compile: who waits for them is told in time, and they don't keep others waiting."""

import math
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import NamedTuple

import pytest
from tests.unit.engine.support import Gathered, ManualClock, SimulatedRunner, build_engine, run_all
from tests.unit.engine.test_engine_process import config
from tests.unit.engine.test_guided_requests import TOKEN_IDS, guided, wait_for_grammars, with_grammar

from chorus_workers.engine import process
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.messages import Submit
from chorus_workers.engine.output import StepOutput
from chorus_workers.engine.process import Link
from chorus_workers.engine.request import GenerationRequest, RefusalReason
from chorus_workers.guide import grammars
from chorus_workers.guide.spec import GrammarKind

TIMEOUT_S = 5.0


class Slow(NamedTuple):
    """Regular expressions that begin with "slow" are being compiled until `go` is set."""

    begun: list[str]
    go: Event


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow, write = Slow([], Event()), grammars._WRITERS[GrammarKind.REGEX]

    def wait(source: str) -> str:
        if source.startswith("slow"):
            slow.begun.append(source)
            assert slow.go.wait(120)
        return write(source)

    monkeypatch.setitem(grammars._WRITERS, GrammarKind.REGEX, wait)
    yield slow
    slow.go.set()


def build(timeout_s: float = TIMEOUT_S) -> tuple[Engine, ManualClock]:
    engine, _, clock = build_engine(token_ids=TOKEN_IDS, max_queued_requests=1000, grammar_timeout_s=timeout_s)
    return engine, clock


def with_regex(name: str, source: str) -> GenerationRequest:
    (asked,) = guided(1, spec=with_grammar(GrammarKind.REGEX, source))
    return replace(asked, request_id=name)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def add_slow(engine: Engine, slow: Slow, *names: str) -> None:
    """Adds requests whose grammars are begun before this returns."""
    num_begun = len(slow.begun)
    for name in names:
        engine.add(with_regex(name, f"slow {name}"))
    wait_for(lambda: len(slow.begun) == num_begun + len(names))


def run_to_the_end(engine: Engine) -> Gathered:
    """As `run_all`, but waits for grammars too."""
    gathered = Gathered()
    while engine.has_requests or engine.load().num_waiting:
        run_all(engine, gathered)
        time.sleep(0.001)
    return gathered


def test_who_waits_too_long_is_told_which_grammar(slow: Slow) -> None:
    engine, clock = build()
    add_slow(engine, slow, "a")
    clock.now += TIMEOUT_S - 0.1
    assert not engine.step().refused and engine.load().num_waiting == 1
    clock.now += 0.1
    refusal = engine.step().refused["a"]
    assert (refusal.reason, refusal.field) == (RefusalReason.INVALID_ARGUMENT, "guide.messages[1].grammar")
    assert refusal.message == "it takes more than 5 seconds to compile"
    assert not engine.has_requests and engine.load().num_waiting == 0
    # As long as it is being compiled, nobody waits for it again.
    engine.add(with_regex("again", "slow a"))
    assert engine.step().refused["again"].message == refusal.message
    # And once it is, it is there.
    slow.go.set()
    wait_for(lambda: engine.guides.has_news)
    engine.add(with_regex("later", "slow a"))
    assert engine.has_requests
    assert run_all(engine).finished.keys() == {"later"}


def test_late_grammars_do_not_keep_others_waiting(slow: Slow) -> None:
    engine, clock = build()
    add_slow(engine, slow, "a", "b")
    engine.add(with_regex("quick", "[a-z]+"))
    assert engine.load().num_waiting == 3 and not engine.guides.has_news
    clock.now += TIMEOUT_S
    assert engine.step().refused.keys() == {"a", "b"}
    assert run_to_the_end(engine).finished.keys() == {"quick"}


def test_there_is_an_end_to_late_grammars_that_run(slow: Slow) -> None:
    engine, clock = build()
    add_slow(engine, slow, "a", "b")
    clock.now += TIMEOUT_S
    assert engine.step().refused.keys() == {"a", "b"}
    add_slow(engine, slow, "c", "d")
    clock.now += TIMEOUT_S
    assert engine.step().refused.keys() == {"c", "d"}
    engine.add(with_regex("quick", "[a-z]+"))
    assert not engine.step()
    assert engine.load().num_waiting == 1 and not engine.guides.has_news
    slow.go.set()
    assert run_to_the_end(engine).finished.keys() == {"quick"}


def test_who_brings_a_grammar_to_a_full_queue_is_refused(slow: Slow) -> None:
    engine, _ = build()
    engine.add(with_regex("known", "[a-z]+"))
    wait_for_grammars(engine)
    run_all(engine)
    add_slow(engine, slow, "a", "b")
    for i in range(grammars._MAX_QUEUED):
        engine.add(with_regex(f"{i}", f"[a-z]{{{i + 1}}}"))
    engine.add(with_regex("one more", "x+"))
    refusal = engine.step().refused["one more"]
    assert refusal.reason == RefusalReason.OVERLOADED and refusal.retry_after_s
    slow.go.set()
    engine.guides.close()


def test_requests_without_new_grammars_are_taken_on_beside_a_full_queue(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "_MAX_QUEUED", 1)
    engine, _ = build(math.inf)
    engine.add(with_regex("known", "[a-z]+"))
    wait_for_grammars(engine)
    run_all(engine)
    add_slow(engine, slow, "a", "b")
    engine.add(with_regex("queued", "x+"))
    free, *_ = guided(1)
    engine.add(with_regex("known", "[a-z]+"))
    engine.add(replace(free, request_id="free"))
    engine.add(with_regex("new", "y+"))
    output = run_all(engine)
    assert output.finished.keys() == {"known", "free"}
    assert engine.load().num_waiting == 3


def test_an_idle_process_tells_who_waits_too_long(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "load_runner", lambda _: SimulatedRunner(token_ids=TOKEN_IDS))
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        running = pool.submit(process.run, theirs)
        link = Link(ours)
        link.send(config(grammar_timeout_s=0.01))
        told = link.receive(wait=True)
        link.send(Submit(with_regex("a", "slow a")))
        while not any(isinstance(message, StepOutput) for message in told):
            told.extend(link.receive(wait=True))
        (output,) = (message for message in told if isinstance(message, StepOutput))
        assert output.refused["a"].message == "it takes more than 0.01 seconds to compile"
        ours.shutdown(socket.SHUT_RDWR)
        running.result(120)


def test_an_engine_that_is_closed_compiles_nothing_more(slow: Slow) -> None:
    engine, _ = build()
    add_slow(engine, slow, "a", "b")
    engine.add(with_regex("c", "slow c"))
    engine.close()
    slow.go.set()
    engine.guides._grammars._compilers._threads.shutdown(wait=True)
    assert sorted(slow.begun) == ["slow a", "slow b"]
