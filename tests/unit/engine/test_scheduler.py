"""What runs when, and what happens when memory or time runs out."""

import pytest
from tests.unit.engine.support import (
    NOT_FINITE_SEED,
    Build,
    Gathered,
    ManualClock,
    SimulatedRunner,
    alone,
    ask,
    build_engine,
    run_all,
)

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, RefusalReason
from chorus_workers.runner.base import Batch


def shape(batch: Batch) -> dict[str, int]:
    """Tokens by request, in the batch's order."""
    return {chunk.request_id: len(chunk.token_ids) for chunk in batch.chunks}


def refusals(engine: Engine) -> dict[str, RefusalReason]:
    return {request_id: refusal.reason for request_id, refusal in engine.step().refused.items()}


def test_a_request_runs_to_its_limit(build: Build) -> None:
    engine, _, clock = build()
    asked = ask("a", clock=clock)
    engine.add(asked)
    gathered = run_all(engine)
    assert (gathered.tokens["a"], gathered.finished["a"]) == alone(asked)


def test_a_stop_token_is_delivered_and_ends_the_request(build: Build) -> None:
    engine, _, _ = build()
    # The first seed whose answer stops by itself.
    asked = next(a for a in (ask("a", seed=seed, max_tokens=40) for seed in range(100)) if alone(a)[1] == 1)
    engine.add(asked)
    gathered = run_all(engine)
    assert gathered.finished["a"] == FinishReason.STOP
    assert gathered.tokens["a"][-1] == 0 and 0 not in gathered.tokens["a"][:-1]


def test_without_a_limit_the_context_s_end_is_one(build: Build) -> None:
    engine, _, _ = build(max_model_len=20)
    asked = next(a for a in (ask("a", seed=seed, max_tokens=0) for seed in range(100)) if alone(a, 20)[1] == 2)
    engine.add(asked)
    gathered = run_all(engine)
    assert gathered.finished["a"] == FinishReason.LENGTH
    assert len(gathered.tokens["a"]) == 20 - 3


def test_the_context_is_no_longer_than_the_kv_memory(build: Build) -> None:
    engine, _, _ = build(num_blocks=3, block_size=4, max_model_len=64)
    assert engine.info.max_model_len == 12
    engine.add(ask("too long", range(1, 13)))
    assert refusals(engine) == {"too long": RefusalReason.INVALID_ARGUMENT}
    asked = ask("fits", range(1, 12), max_tokens=0)
    engine.add(asked)
    gathered = run_all(engine)
    assert (gathered.tokens["fits"], gathered.finished["fits"]) == alone(asked, 12)


def test_a_long_prompt_is_computed_in_chunks_beside_decoding() -> None:
    engine, runner, _ = build_engine(max_batched_tokens=8)
    engine.add(ask("short", [1, 2], max_tokens=20))
    engine.step()
    engine.add(ask("long", range(1, 21), max_tokens=2))
    for _ in range(4):
        engine.step()
    assert [shape(batch) for batch in runner.batches] == [
        {"short": 2},
        {"short": 1, "long": 7},
        {"short": 1, "long": 7},
        {"short": 1, "long": 6},
        {"short": 1, "long": 1},
    ]


def test_one_step_may_prefill_several_prompts(build: Build) -> None:
    engine, runner, _ = build(max_batched_tokens=8)
    for request_id in "abc":
        engine.add(ask(request_id, [1, 2, 3]))
    engine.step()
    engine.step()
    assert [shape(batch) for batch in runner.batches] == [{"a": 3, "b": 3, "c": 2}, {"a": 1, "b": 1, "c": 1}]


def test_requests_are_admitted_in_order_of_arrival(build: Build) -> None:
    engine, runner, _ = build(num_slots=2)
    for request_id in "abcd":
        engine.add(ask(request_id, max_tokens=2))
    run_all(engine)
    firsts = [chunk.request_id for batch in runner.batches for chunk in batch.chunks if chunk.start == 0]
    assert firsts == ["a", "b", "c", "d"]


def test_priority_goes_before_arrival(build: Build) -> None:
    engine, runner, _ = build(num_slots=1)
    engine.add(ask("a", max_tokens=1))
    engine.add(ask("b", max_tokens=1, priority=5))
    engine.add(ask("urgent", max_tokens=1, priority=-1))
    run_all(engine)
    assert [chunk.request_id for batch in runner.batches for chunk in batch.chunks] == ["urgent", "a", "b"]


def test_who_came_last_gives_way_and_its_answer_does_not_change(build: Build) -> None:
    engine, _, _ = build(num_blocks=8, block_size=4, num_slots=3)
    asked = [ask(request_id, [i, 2, 3, 4], max_tokens=24, seed=i) for i, request_id in enumerate("abc", start=10)]
    assert all(len(alone(a, 32)[0]) > 10 for a in asked), "choose other seeds"
    for a in asked:
        engine.add(a)
    gathered = run_all(engine)
    assert engine.stats.num_preemptions > 0
    assert sum(engine.stats.queue_time.counts) == 3, "only the first wait is queue time"
    assert {a.request_id: (gathered.tokens[a.request_id], gathered.finished[a.request_id]) for a in asked} == {
        a.request_id: alone(a, 32) for a in asked
    }


def test_what_was_generated_is_computed_again_one_by_one_where_batches_must_not_matter(build: Build) -> None:
    engine, runner, _ = build(num_blocks=8, block_size=4, num_slots=3, batch_invariant=True)
    asked = [ask(request_id, [i, 2, 3, 4, 5], max_tokens=24, seed=i) for i, request_id in enumerate("abc", start=10)]
    for a in asked:
        engine.add(a)
    gathered = run_all(engine)
    assert engine.stats.num_preemptions > 0
    assert {a.request_id: (gathered.tokens[a.request_id], gathered.finished[a.request_id]) for a in asked} == {
        a.request_id: alone(a, 32) for a in asked
    }
    chunks = [chunk for batch in runner.batches for chunk in batch.chunks]
    assert any(chunk.replayed for chunk in chunks)
    assert all(chunk.start + len(chunk.token_ids) <= 5 or len(chunk.token_ids) == 1 for chunk in chunks)


def test_admission_leaves_a_page_to_grow_into_for_those_who_run(build: Build) -> None:
    engine, runner, _ = build(num_blocks=4, block_size=4)
    engine.add(ask("first", [1, 2, 3, 4, 5], max_tokens=1))
    engine.add(ask("second", range(1, 9), max_tokens=1))
    run_all(engine)
    assert [shape(batch) for batch in runner.batches] == [{"first": 5}, {"second": 8}]


def test_the_first_request_is_never_preempted(build: Build) -> None:
    engine, runner, _ = build(num_blocks=8, block_size=4, num_slots=3)
    for i, request_id in enumerate("abc", start=10):
        engine.add(ask(request_id, [i, 2, 3, 4], max_tokens=24, seed=i))
    run_all(engine)
    starts = [chunk.request_id for batch in runner.batches for chunk in batch.chunks if chunk.start == 0]
    assert starts.count("a") == 1
    assert len(starts) > 3


def test_a_resumed_request_goes_on_where_it_was(build: Build) -> None:
    whole = ask("whole", [4, 5, 6], max_tokens=12, seed=3)
    tokens, reason = alone(whole)
    assert len(tokens) > 5
    engine, _, _ = build()
    engine.add(ask("rest", [4, 5, 6, *tokens[:5]], max_tokens=12, seed=3, num_resumed_tokens=5))
    gathered = run_all(engine)
    assert (tokens[:5] + gathered.tokens["rest"], gathered.finished["rest"]) == (tokens, reason)


@pytest.mark.parametrize(
    ("drawn", "max_tokens", "reason"),
    [([9, 0], 12, FinishReason.STOP), ([9, 9], 2, FinishReason.LENGTH), ([9] * 70, 80, FinishReason.LENGTH)],
)
def test_a_resumed_request_may_have_been_over(
    build: Build, drawn: list[int], max_tokens: int, reason: FinishReason
) -> None:
    engine, runner, _ = build()
    engine.add(ask("a", [4, 5, *drawn], max_tokens=max_tokens, num_resumed_tokens=len(drawn)))
    gathered = run_all(engine)
    assert gathered.finished == {"a": reason}
    assert not gathered.tokens
    assert not runner.batches


def test_a_prompt_s_own_stop_token_ends_nothing(build: Build) -> None:
    engine, _, _ = build()
    engine.add(ask("a", [4, 0]))
    assert run_all(engine).tokens["a"]


def test_abort_frees_everything_at_once(build: Build) -> None:
    engine, _, _ = build(num_slots=1)
    engine.add(ask("running", max_tokens=40))
    engine.add(ask("waiting", max_tokens=40))
    engine.step()
    assert engine.load().kv_usage > 0
    engine.abort("running")
    engine.abort("waiting")
    engine.abort("unknown")
    assert engine.load().kv_usage == 0
    engine.check_integrity()
    assert run_all(engine).finished == {"running": FinishReason.ABORT, "waiting": FinishReason.ABORT}


def test_deadlines_hold_for_running_and_waiting_requests(build: Build) -> None:
    engine, _, clock = build(num_slots=1)
    asked = ask("running", max_tokens=40, seed=1, deadline=clock.now + 3)
    assert len(alone(asked)[0]) > 3
    engine.add(asked)
    engine.add(ask("waiting", deadline=clock.now + 2))
    engine.add(ask("patient"))
    gathered = Gathered()
    engine.step()
    clock.now += 1
    gathered.take(engine.step())
    assert gathered.finished == {"waiting": FinishReason.DEADLINE}
    gathered = run_all(engine, gathered)
    assert gathered.finished["running"] == FinishReason.DEADLINE
    assert gathered.finished["patient"] == alone(ask("patient"))[1]


def test_a_deadline_passed_on_arrival_is_a_refusal(build: Build) -> None:
    engine, _, clock = build()
    engine.add(ask("late", deadline=clock.now))
    assert refusals(engine) == {"late": RefusalReason.DEADLINE}
    engine.check_integrity()


def test_an_id_in_use_is_refused_and_the_first_goes_on(build: Build) -> None:
    engine, _, _ = build()
    engine.add(ask("a"))
    engine.add(ask("a", seed=1))
    output = engine.step()
    assert output.refused["a"].field == "request_id"
    assert output.token_ids == alone(ask("a"))[0][:1]


def test_a_full_queue_refuses_with_a_hint_that_follows_the_throughput() -> None:
    engine, _, _ = build_engine(num_slots=2, max_queued_requests=3)
    for i in range(5):
        engine.add(ask(str(i), max_tokens=40, seed=i + 20))
    engine.add(ask("one too many"))
    refusal = engine.step().refused["one too many"]
    assert refusal.reason == RefusalReason.OVERLOADED
    assert refusal.retry_after_s == 1.0
    # Prefill made 6 tokens a second, so far: 5 requests of 43 tokens, less 6, take 7 s each.
    engine.add(ask("still too many"))
    refusal = engine.step().refused["still too many"]
    assert refusal.retry_after_s == pytest.approx((5 * 43 - 6) / 6 / 5)


@pytest.mark.parametrize(("step_time_s", "hint_s"), [(1e-4, 0.1), (100.0, 60.0)])
def test_the_hint_of_a_full_queue_has_bounds(step_time_s: float, hint_s: float) -> None:
    clock = ManualClock()
    engine = Engine(SimulatedRunner(clock, num_slots=1, step_time_s=step_time_s), max_queued_requests=0, clock=clock)
    engine.add(ask("a", max_tokens=40, seed=20))
    engine.step()
    engine.add(ask("one too many"))
    assert engine.step().refused["one too many"].retry_after_s == hint_s


def test_a_request_that_fails_fails_alone(build: Build) -> None:
    engine, _, _ = build()
    engine.add(ask("bad", seed=NOT_FINITE_SEED))
    engine.add(ask("good"))
    gathered = run_all(engine)
    assert gathered.finished["bad"] == FinishReason.ERROR
    assert gathered.messages["bad"] == "the model's logits were not finite"
    assert gathered.tokens == {"good": alone(ask("good"))[0]}


def test_what_is_counted(build: Build) -> None:
    engine, _, clock = build(num_slots=1, max_batched_tokens=2)
    engine.add(ask("a", max_tokens=3, clock=clock, seed=1))
    engine.add(ask("b", max_tokens=1, clock=clock, seed=1))
    run_all(engine)
    stats = engine.stats
    assert (stats.num_prompt_tokens, stats.num_computed_tokens, stats.num_generated_tokens) == (6, 8, 4)
    # a: two steps of prefill, two of decode; b: two of prefill. A step takes 1 s.
    assert stats.step_time.sum == stats.batch_requests.sum == 6
    assert stats.batch_tokens.sum == 8
    assert stats.queue_time.sum == 0 + 4
    assert stats.time_to_first_token.sum == 2 + 6
    assert (sum(stats.inter_token_latency.counts), stats.inter_token_latency.sum) == (2, 2)
    assert stats.finished == {"length": 2}


def test_load_tells_what_is_left_to_compute() -> None:
    engine, _, _ = build_engine(num_slots=1, num_blocks=10)
    engine.add(ask("a", [1, 2, 3], max_tokens=5))
    engine.add(ask("b", [1], max_tokens=1))
    assert engine.load().num_outstanding_tokens == 8 + 2
    engine.step()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.num_outstanding_tokens) == (1, 1, 5 + 2)
    assert load.kv_usage == pytest.approx(0.1)
