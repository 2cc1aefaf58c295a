"""The engine over the reference runner: an answer is the same alone, in a crowd, after preemption, and after a move."""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.engine_driver import Answer, run
from tests.support.overlapping_runner import OverlappingRunner
from tests.support.runner_driver import poison

from chorus_workers.config import WorkerConfig
from chorus_workers.engine.client import AsyncEngine, EngineStartError
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.runner.factory import RunnerConfig, create_runner
from chorus_workers.runner.reference import ReferenceRunner
from chorus_workers.sampling_params import SamplingParams

SHAPE = Shape(window=16)
MAX_MODEL_LEN = 96

PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "seeded": SamplingParams(temperature=0.9, seed=5),
    "truncated": SamplingParams(temperature=1.3, seed=6, top_p=0.8, top_k=20, min_p=0.02),
    "penalized": SamplingParams(temperature=0.0, frequency_penalty=0.7, presence_penalty=0.3, repetition_penalty=1.2),
    "biased": SamplingParams(temperature=0.7, seed=7, logit_bias={3: 2.0, 9: -100.0}, num_top_logprobs=4),
    "stopping": SamplingParams(temperature=1.5, seed=8, stop_token_ids=frozenset(range(0, 211, 9))),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), SHAPE)


def build(
    checkpoint: Path, *, num_blocks: int, num_slots: int = 4, max_batched_tokens: int = 24, overlaps: bool = False
) -> Engine:
    runner = create_runner(
        RunnerConfig(
            model=str(checkpoint),
            max_model_len=MAX_MODEL_LEN,
            block_size=8,
            num_blocks=num_blocks,
            num_slots=num_slots,
            max_batched_tokens=max_batched_tokens,
            num_threads=1,
        )
    )
    assert isinstance(runner, ReferenceRunner)
    poison(runner)
    return Engine(OverlappingRunner(runner) if overlaps else runner, max_queued_requests=100, clock=time.monotonic)


def crowd() -> list[GenerationRequest]:
    """Two requests of each kind, with prompts of many lengths."""
    dice = random.Random(4)
    return [
        GenerationRequest(
            f"{name} {turn}",
            [dice.randrange(SHAPE.vocab_size) for _ in range(dice.randrange(1, 50))],
            params,
            max_tokens=dice.randrange(20, 44),
        )
        for name, params in PARAMS.items()
        for turn in range(2)
    ]


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict[str, Answer]:
    """Each request on an engine that nobody else uses, prefilled at once."""
    engine = build(checkpoint, num_blocks=12, num_slots=1, max_batched_tokens=MAX_MODEL_LEN)
    return {name: answer for request in crowd() for name, answer in run(engine, [request]).items()}


def test_answers_are_worth_comparing(alone: dict[str, Answer]) -> None:
    assert {reason for _, reason in alone.values()} == {FinishReason.STOP, FinishReason.LENGTH}
    assert len({tuple(tokens) for tokens, _ in alone.values()}) == len(alone)
    assert all(len(set(tokens)) > 3 for tokens, reason in alone.values() if reason == FinishReason.LENGTH)


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_crowd_changes_no_answer(checkpoint: Path, alone: dict[str, Answer], overlaps: bool) -> None:
    engine = build(checkpoint, num_blocks=100, overlaps=overlaps)
    assert run(engine, crowd()) == alone
    assert engine.stats.num_preemptions == 0


@pytest.mark.parametrize("overlaps", [False, True])
def test_preemption_changes_no_answer(checkpoint: Path, alone: dict[str, Answer], overlaps: bool) -> None:
    engine = build(checkpoint, num_blocks=14, overlaps=overlaps)
    assert run(engine, crowd()) == alone
    assert engine.stats.num_preemptions > 3


def test_pending_tokens_change_no_answer(checkpoint: Path, alone: dict[str, Answer]) -> None:
    """Without the requests whose penalties keep steps from overlapping."""
    for num_blocks in (100, 14):
        engine = build(checkpoint, num_blocks=num_blocks, overlaps=True)
        requests = [request for request in crowd() if not request.params.has_penalties]
        assert run(engine, requests) == {request.request_id: alone[request.request_id] for request in requests}
        runner = engine._runner
        assert isinstance(runner, OverlappingRunner)
        assert runner.num_pending_tokens > engine.stats.num_generated_tokens / 2
        assert (engine.stats.num_preemptions > 3) == (num_blocks == 14)


@pytest.mark.parametrize("num_resumed_tokens", [1, 7, 18])
def test_another_engine_continues_an_answer(
    checkpoint: Path, alone: dict[str, Answer], num_resumed_tokens: int
) -> None:
    moved = [
        replace(
            request,
            prompt_token_ids=[*request.prompt_token_ids, *alone[request.request_id][0][:num_resumed_tokens]],
            num_resumed_tokens=num_resumed_tokens,
        )
        for request in crowd()
        if len(alone[request.request_id][0]) > num_resumed_tokens
    ]
    assert len(moved) > 6
    answers = run(build(checkpoint, num_blocks=100), moved)
    assert answers == {
        request.request_id: (alone[request.request_id][0][num_resumed_tokens:], alone[request.request_id][1])
        for request in moved
    }


async def test_the_engine_s_process_serves_a_checkpoint(checkpoint: Path, alone: dict[str, Answer]) -> None:
    config = WorkerConfig(model=str(checkpoint), max_model_len=MAX_MODEL_LEN, num_threads=1)
    engine = await AsyncEngine.start(config)
    try:
        request = crowd()[0]
        stream = engine.submit(replace(request, arrival_time=time.monotonic()))
        tokens: list[int] = []
        while True:
            chunk = await stream.read()
            tokens += chunk.token_ids
            if chunk.finish_reason is not None:
                break
        assert (tokens, chunk.finish_reason) == alone[request.request_id]
    finally:
        await engine.close()


async def test_a_checkpoint_that_can_t_be_loaded_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "cut", SHAPE)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(EngineStartError, match="model.safetensors"):
        await AsyncEngine.start(WorkerConfig(model=str(folder)))
