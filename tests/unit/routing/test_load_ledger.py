import random
from collections import Counter

import pytest

from chorus_cluster.routing.load import LoadLedger


@pytest.fixture
def ledger() -> LoadLedger:
    return LoadLedger(random.Random(7))


def send(ledger: LoadLedger, call: str, tokens: int, workers: list[str]) -> str:
    worker = ledger.rank(workers, call)[0]
    ledger.assign(call, worker, tokens)
    return worker


def test_a_burst_spreads_without_any_report(ledger: LoadLedger) -> None:
    workers = ["a", "b", "c"]
    chosen = Counter(send(ledger, f"call{i}", 100, workers) for i in range(30))
    assert chosen == {"a": 10, "b": 10, "c": 10}


def test_tokens_count_not_requests(ledger: LoadLedger) -> None:
    workers = ["a", "b"]
    first = send(ledger, "long", 10_000, workers)
    others = {send(ledger, f"short{i}", 100, workers) for i in range(20)}
    assert others == {"a", "b"} - {first}


def test_calls_that_cost_nothing_take_turns(ledger: LoadLedger) -> None:
    chosen = [send(ledger, f"call{i}", 0, ["a", "b", "c"]) for i in range(9)]
    assert chosen[:3] == chosen[3:6] == chosen[6:]
    assert set(chosen) == {"a", "b", "c"}


def test_completion_gives_back_what_was_booked(ledger: LoadLedger) -> None:
    ledger.assign("call", "a", 50)
    assert ledger.outstanding_tokens("a") == 50
    ledger.drop("call", "a")
    ledger.drop("call", "a")
    assert ledger.outstanding_tokens("a") == 0


def test_a_late_completion_elsewhere_leaves_the_booking(ledger: LoadLedger) -> None:
    # Refused by a, sent to b: the end of the call to a may be told afterwards.
    ledger.assign("call", "a", 50)
    ledger.assign("call", "b", 50)
    ledger.drop("call", "a")
    assert (ledger.outstanding_tokens("a"), ledger.outstanding_tokens("b")) == (0, 50)


def test_a_call_that_went_elsewhere_moves(ledger: LoadLedger) -> None:
    ledger.assign("call", "a", 50)
    ledger.move("call", "b")
    assert (ledger.outstanding_tokens("a"), ledger.outstanding_tokens("b")) == (0, 50)
    ledger.move("unknown", "b")
    assert ledger.outstanding_tokens("b") == 50


def test_reports_show_what_others_sent_and_not_our_own_twice(ledger: LoadLedger) -> None:
    ledger.assign("ours", "a", 300)
    ledger.report("a", 300)
    assert ledger.outstanding_tokens("a") == 300
    ledger.report("a", 1000)
    assert ledger.outstanding_tokens("a") == 1000
    assert ledger.rank(["a", "b"], None) == ["b", "a"]
    ledger.report("a", 0)
    assert ledger.outstanding_tokens("a") == 300


def test_a_report_older_than_a_completion_is_not_taken_for_others(ledger: LoadLedger) -> None:
    ledger.assign("ours", "a", 300)
    ledger.drop("ours", "a")
    ledger.report("a", 290)
    assert ledger.outstanding_tokens("a") == 0
    # The same report again says nothing new; the next one does.
    ledger.report("a", 290)
    assert ledger.outstanding_tokens("a") == 0
    ledger.report("a", 280)
    assert ledger.outstanding_tokens("a") == 280


def test_a_retry_goes_to_a_worker_that_has_not_had_the_request(ledger: LoadLedger) -> None:
    ledger.assign("busy", "b", 10_000)
    ledger.remember("request", "a")
    assert ledger.rank(["a", "b"], "request") == ["b", "a"]
    assert ledger.rank(["a", "b"], "another") == ["a", "b"]
    assert ledger.rank(["a"], "request") == ["a"]


def test_only_the_latest_requests_are_remembered(ledger: LoadLedger) -> None:
    ledger.assign("busy", "b", 10_000)
    for i in range(5000):
        ledger.remember(f"request{i}", "a")
    assert ledger.rank(["a", "b"], "request4999") == ["b", "a"]
    assert ledger.rank(["a", "b"], "request0") == ["a", "b"]


def test_workers_that_are_gone_are_forgotten(ledger: LoadLedger) -> None:
    ledger.assign("call", "a", 50)
    ledger.keep_only({"b"})
    assert ledger.outstanding_tokens("a") == 0
    ledger.drop("call", "a")
    assert ledger.outstanding_tokens("a") == 0


def test_random_traffic_leaves_nothing_behind(ledger: LoadLedger) -> None:
    rng = random.Random(1)
    running: dict[str, str] = {}
    for i in range(2000):
        if running and rng.random() < 0.5:
            call = rng.choice(list(running))
            ledger.drop(call, running.pop(call))
        else:
            running[f"call{i}"] = send(ledger, f"call{i}", rng.randrange(500), ["a", "b", "c"])
        if rng.random() < 0.2:
            call = rng.choice(list(running)) if running else "none"
            if call in running:
                running[call] = "b"
            ledger.move(call, "b")
    for call, worker in running.items():
        ledger.drop(call, worker)
    assert [ledger.outstanding_tokens(name) for name in "abc"] == [0, 0, 0]
