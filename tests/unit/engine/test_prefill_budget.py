"""Long prompts beside answers that are being written: how long a step gets."""

from collections.abc import Sequence

import pytest
from tests.unit.engine.support import Build, Gathered, SimulatedRunner, alone, ask, run_all

from chorus_workers.config import WorkerConfig
from chorus_workers.engine.prefill_budget import PrefillBudget

# A step takes a second, and a hundredth for each token.
SIZES = {
    "max_model_len": 4096, "num_blocks": 512, "block_size": 16, "max_batched_tokens": 1024, "token_time_s": 0.01
}  # fmt: skip
LONG = [1 + i % 40 for i in range(2500)]


def prompt_tokens(runner: SimulatedRunner, request_id: str) -> list[int]:
    """By step, where the request had more than one token."""
    chunks = [chunk for batch in runner.batches for chunk in batch.chunks if chunk.request_id == request_id]
    return [len(chunk.token_ids) for chunk in chunks if len(chunk.token_ids) > 1]


def test_steps_keep_within_the_budget_once_it_is_known_what_they_take(build: Build) -> None:
    engine, runner, _ = build(step_budget_s=3.0, **SIZES)
    # The first seed whose answer is long enough.
    answers = (ask("a", seed=seed, max_tokens=60) for seed in range(1000))
    asked = [next(a for a in answers if len(alone(a, 4096)[0]) >= 30), ask("b", LONG)]
    engine.add(asked[0])
    gathered = Gathered()
    for _ in range(4):
        gathered.take(engine.step())
    engine.add(asked[1])
    run_all(engine, gathered)
    sizes = prompt_tokens(runner, "b")
    # The first says what a token takes, to the third if steps overlap; then 3 s, less 1.01 for decode.
    assert sizes[0] == 64 and sizes[1] in (64, 198) and all(195 <= size <= 199 for size in sizes[2:-1])
    for request in asked:
        assert (gathered.tokens[request.request_id], gathered.finished[request.request_id]) == alone(request, 4096)


def test_prompts_alone_get_whole_steps(build: Build) -> None:
    engine, runner, _ = build(step_budget_s=3.0, **SIZES)
    engine.add(ask("b", LONG))
    run_all(engine)
    assert prompt_tokens(runner, "b") == [1024, 1024, 452]


def test_without_a_budget_steps_are_as_long_as_they_may_be(build: Build) -> None:
    engine, runner, _ = build(**SIZES)
    engine.add(ask("a", max_tokens=60))
    engine.step()
    engine.add(ask("b", LONG))
    run_all(engine)
    assert prompt_tokens(runner, "b")[:2] == [1023, 1023]


def observed(steps: Sequence[tuple[int, int, float]]) -> PrefillBudget:
    budget = PrefillBudget(0.05)
    for step in steps:
        budget.observe(*step)
    return budget


def test_prompts_go_on_where_decode_alone_takes_longer_than_the_budget() -> None:
    assert observed([(8, 0, 0.06), (0, 1000, 0.1)]).num_tokens() == 64


def test_small_steps_say_nothing_of_what_a_token_takes() -> None:
    steps = [(8, 0, 0.01), (0, 1000, 0.1)]
    assert observed(steps).num_tokens() == observed([*steps, (0, 2, 0.01)]).num_tokens() == 400


def test_no_budget_is_no_budget() -> None:
    with pytest.raises(ValueError, match="step_budget_s"):
        WorkerConfig(step_budget_s=0.0)
