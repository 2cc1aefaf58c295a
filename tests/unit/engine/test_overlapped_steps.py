"""A step that is launched while the one before is under way: what it may know, and what becomes of what it computed."""

import pytest
from tests.support.overlapping_runner import OverlappingRunner
from tests.unit.engine.support import (
    NOT_FINITE_SEED,
    Gathered,
    ManualClock,
    SimulatedRunner,
    alone,
    ask,
    build_engine,
    check_partition,
    run_all,
)

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.runner.base import PENDING_TOKEN, Batch, SampleRequest, SequenceChunk
from chorus_workers.sampling_params import SamplingParams


def build(**settings: int) -> tuple[Engine, OverlappingRunner, SimulatedRunner, ManualClock]:
    engine, simulated, clock = build_engine(overlaps=True, **settings)
    runner = engine._runner
    assert isinstance(runner, OverlappingRunner)
    return engine, runner, simulated, clock


def long_ones(count: int, length: int = 20, **fields: object) -> list[GenerationRequest]:
    """Requests that run to a limit of `length` tokens."""
    asked = (ask(f"{seed}", max_tokens=length, seed=seed, **fields) for seed in range(10, 1000))  # type: ignore[arg-type]
    return [a for a in asked if len(alone(a)[0]) == length and alone(a)[1] == FinishReason.LENGTH][:count]


def one_that_stops(num_tokens: int) -> GenerationRequest:
    """The first request whose answer has so many tokens, the last of which it could not foresee."""
    asked = (ask("stops", seed=seed, max_tokens=40) for seed in range(1000))
    return next(a for a in asked if (len(alone(a)[0]), alone(a)[1]) == (num_tokens, FinishReason.STOP))


def test_every_step_but_the_first_is_launched_beside_another() -> None:
    engine, runner, simulated, _ = build()
    (asked,) = long_ones(1)
    engine.add(asked)
    assert run_all(engine).tokens[asked.request_id] == alone(asked)[0]
    assert len(simulated.batches) == 20
    assert runner.num_overlapped == runner.num_pending_tokens == 19


def test_nothing_is_computed_beyond_a_last_token_that_is_foreseen() -> None:
    counts = []
    for overlaps in (False, True):
        engine, simulated, _ = build_engine(overlaps=overlaps)
        for asked in long_ones(3):
            engine.add(asked)
        run_all(engine)
        counts.append((len(simulated.batches), engine.stats.num_computed_tokens, engine.stats.step_time.sum))
    assert counts[0] == counts[1] == (20, 3 * (3 + 19), 20.0)


def test_one_token_is_computed_beyond_a_stop_token_and_then_the_engine_is_idle() -> None:
    engine, _, simulated, _ = build()
    asked = one_that_stops(5)
    engine.add(asked)
    gathered = Gathered()
    while not gathered.finished:
        assert engine.has_requests
        gathered.take(engine.step())
        engine.check_integrity()
    assert (gathered.tokens["stops"], gathered.finished["stops"]) == alone(asked)
    # Its memory is free, though a step that uses it is under way.
    assert engine.load().kv_usage == 0
    assert engine.has_requests and len(simulated.batches) == 5
    assert not engine.step()
    assert not engine.has_requests and len(simulated.batches) == 6
    assert engine.stats.num_computed_tokens == 3 + 5


def test_who_comes_while_a_step_is_under_way_is_in_the_next_one() -> None:
    engine, _, simulated, _ = build(num_slots=1)
    first = one_that_stops(5)
    engine.add(first)
    gathered = Gathered()
    while not gathered.finished:
        gathered.take(engine.step())
    (second,) = long_ones(1)
    engine.add(second)
    run_all(engine, gathered)
    assert gathered.tokens[second.request_id] == alone(second)[0]
    # The same slot, right after the step that computed for its last owner in vain.
    owners = [chunk.request_id for batch in simulated.batches for chunk in batch.chunks]
    assert owners[4:7] == ["stops", "stops", second.request_id]


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_an_id_that_comes_again_gets_nothing_of_its_predecessor(num_steps: int) -> None:
    engine, _, _, _ = build()
    first, second = long_ones(2)
    engine.add(first)
    for _ in range(num_steps):
        engine.step()
    engine.abort(first.request_id)
    engine.check_integrity()
    second = ask(first.request_id, [8, 9], max_tokens=20, seed=int(second.request_id))
    engine.add(second)
    aborted = engine.step()
    assert aborted.finished[first.request_id][0] == FinishReason.ABORT
    assert not aborted.token_ids
    gathered = run_all(engine)
    assert (gathered.tokens[first.request_id], gathered.finished[first.request_id]) == alone(second)


def test_what_is_drawn_after_a_deadline_is_dropped() -> None:
    engine, _, _, clock = build()
    (asked,) = long_ones(1, deadline=104.0, clock=ManualClock())
    engine.add(asked)
    gathered = run_all(engine)
    assert gathered.finished[asked.request_id] == FinishReason.DEADLINE
    # The deadline is seen when the fifth step is committed and the sixth to be launched.
    assert gathered.tokens[asked.request_id] == alone(asked)[0][:4]
    assert clock.now == 105.0


def test_a_pending_token_survives_that_its_request_gives_way() -> None:
    engine, _, _, _ = build(num_blocks=7, num_slots=3)
    asked = long_ones(3, length=16)
    for a in asked:
        engine.add(a)
    gathered, late = Gathered(), set()
    while engine.has_requests:
        output = engine.step()
        gathered.take(output)
        late |= {request.request_id for request in engine._scheduler._waiting}.intersection(output.request_ids)
        engine.check_integrity()
        check_partition(engine)
    assert late, "nobody gave way with a token pending"
    assert {a.request_id: gathered.tokens[a.request_id] for a in asked} == {a.request_id: alone(a)[0] for a in asked}


def test_with_penalties_steps_overlap_and_every_token_is_known_at_the_draw() -> None:
    engine, runner, simulated, _ = build()
    free, penalized = long_ones(1)[0], ask("penalized", max_tokens=6, seed=12, presence_penalty=0.5)
    for asked in (free, penalized):
        engine.add(asked)
    gathered = run_all(engine)
    assert gathered.tokens == {asked.request_id: alone(asked)[0] for asked in (free, penalized)}
    assert runner.num_pending_tokens == sum(len(tokens) - 1 for tokens in gathered.tokens.values())
    drawn = [(a, sample) for b in simulated.batches for a in b.chunks if (sample := a.sample) is not None]
    assert all(len(sample.all_token_ids) == sample.position for _, sample in drawn)


def test_a_failure_is_seen_one_step_late_and_is_nobody_else_s() -> None:
    engine, _, simulated, _ = build()
    (good,) = long_ones(1)
    engine.add(ask("bad", seed=NOT_FINITE_SEED))
    engine.add(good)
    gathered = run_all(engine)
    assert gathered.finished["bad"] == FinishReason.ERROR
    assert gathered.tokens == {good.request_id: alone(good)[0]}
    assert [len(batch.chunks) for batch in simulated.batches[:3]] == [2, 2, 1]


def test_the_overlapping_runner_refuses_a_pending_token_that_no_step_draws() -> None:
    runner = OverlappingRunner(SimulatedRunner())
    sample = SampleRequest(SamplingParams(), (1, 2), 2, 2)
    first = runner.launch(Batch([SequenceChunk("a", 0, 0, (1, 2), [0], sample)]))
    with pytest.raises(AssertionError, match="has not been drawn"):
        runner.launch(Batch([SequenceChunk("a", 0, 2, (PENDING_TOKEN,), [0], None)]))
    first.draw()
    with pytest.raises(AssertionError, match="draws nothing"):
        runner.launch(Batch([SequenceChunk("b", 1, 2, (PENDING_TOKEN,), [1], None)]))
    second = runner.launch(Batch([SequenceChunk("a", 0, 2, (PENDING_TOKEN,), [0], None)]))
    second.draw()
    with pytest.raises(AssertionError, match="out of order"):
        second.result()
