"""What every runner does for the engine, asked of each in turn: batches in, tokens out, and nothing else.

Where tokens are compared, both runs are of batches of the same shape, for which a runner gives the same bits. How near
the Triton runner's logits are to the reference runner's is asked in `test_triton_runner`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.runner_driver import ScatteredSequence, make_runner
from tests.support.triton_stand_ins import DEVICE, stand_in

from chorus_workers.model.checkpoint import load_model, load_model_as
from chorus_workers.runner.base import Batch, Runner, SampledToken, SampleRequest, SequenceChunk
from chorus_workers.runner.triton.form import DeviceForm
from chorus_workers.runner.triton.runner import TritonRunner
from chorus_workers.sampling_params import SamplingParams

SHAPE = Shape(num_layers=2, num_experts=5, num_experts_per_token=2, head_dim=16, vocab_size=83, window=9)
GREEDY = SamplingParams(temperature=0.0)
NOT_A_NUMBER = 82
Make = Callable[..., Runner]


@pytest.fixture(params=["reference", "triton"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a runner of a shape; token 82's embedding is not a number, if there is one."""
    stand_in(monkeypatch)

    def build(shape: Shape = SHAPE) -> Runner:
        folder = write_checkpoint(tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}", shape)
        reference = make_runner(load_model(folder))
        runner: Runner = reference
        model = reference._transformer.model
        if request.param == "triton":
            runner = TritonRunner(load_model_as(DeviceForm(DEVICE), folder), reference.info)
            model = runner._transformer.model
            for memory in runner.memory.layers:
                memory.fill_(torch.nan)
        if shape.vocab_size == 83:
            model.embedding[NOT_A_NUMBER] = torch.nan
        return runner

    return build


class Request(ScatteredSequence):
    """Computes what it knows, and draws."""

    def __init__(self, slot: int, runner: Runner, prompt: list[int], params: SamplingParams = GREEDY) -> None:
        super().__init__(slot, runner)
        self.params, self.tokens, self.num_prompt_tokens = params, list(prompt), len(prompt)

    def next_chunk(self) -> SequenceChunk:
        chunk = self.chunk(self.tokens[self.num_computed :])
        sample = SampleRequest(self.params, tuple(self.tokens), self.num_prompt_tokens, len(self.tokens))
        return replace(chunk, sample=sample)


def run(runner: Runner, requests: list[Request], num_steps: int) -> list[list[SampledToken]]:
    """What each request drew."""
    drawn: list[list[SampledToken]] = [[] for _ in requests]
    for _ in range(num_steps):
        result = runner.run(Batch([request.next_chunk() for request in requests]))
        for request, tokens, token in zip(requests, drawn, result.sampled, strict=True):
            assert token is not None
            request.tokens.append(token.token_id)
            tokens.append(token)
    return drawn


def prompt(count: int, seed: int) -> list[int]:
    return torch.randint(0, 80, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("kind", ["both", "full_attention", "sliding_attention"])
def test_slots_and_pages_are_used_again(make: Make, kind: str) -> None:
    """Whatever lies there: others' keys and values, or what is not a number."""
    runner = make(replace(SHAPE, overrides={} if kind == "both" else {"layer_types": [kind] * 2}))
    run(runner, [Request(2, runner, prompt(30, 1))], 3)
    run(runner, [Request(2, runner, [5, NOT_A_NUMBER, 6])], 1)
    again, fresh = Request(2, runner, prompt(12, 2)), Request(1, runner, prompt(12, 2))
    # Past the window, and into a second page.
    assert run(runner, [again], 5) == run(runner, [fresh], 5)


def test_a_failing_request_fails_alone(make: Make) -> None:
    runner = make()
    bad, *others = (Request(slot, runner, p) for slot, p in enumerate(([5, NOT_A_NUMBER, 6], [4], prompt(20, 3))))
    drawn = run(runner, [others[0], bad, others[1]], 1)
    assert [tokens[0].failed for tokens in drawn] == [False, True, False]
    assert not any(token.failed for tokens in run(runner, others, 2) for token in tokens)


def test_only_chunks_that_ask_get_a_token(make: Make) -> None:
    runner = make()
    a, b = Request(0, runner, [1, 2, 3]), Request(1, runner, [4, 5])
    result = runner.run(Batch([a.chunk([1, 2]), b.next_chunk(), Request(2, runner, [9]).chunk([9])]))
    assert [token is None for token in result.sampled] == [True, False, True]
    assert runner.run(Batch([a.chunk([3])])).sampled == [None]
    assert runner.run(Batch([])).sampled == []


def test_tokens_follow_from_seed_and_position(make: Make) -> None:
    runner = make()
    warm = SamplingParams(temperature=3.0, seed=2**63 + 1, top_p=0.95)
    same, other = [Request(slot, runner, prompt(9, 4), warm) for slot in (0, 1)], replace(warm, seed=5)
    first, second, third = run(runner, [*same, Request(2, runner, prompt(9, 4), other)], 6)
    assert first == second != third


def test_logprobs_are_of_those_who_ask(make: Make) -> None:
    runner = make()
    asks = replace(GREEDY, num_top_logprobs=3)
    (silent,), (told,) = run(runner, [Request(0, runner, [1, 2]), Request(1, runner, [1, 2], asks)], 1)
    assert silent.logprob is None and not silent.top
    assert told.token_id == silent.token_id == told.top[0][0] and told.logprob == told.top[0][1]
    assert len(told.top) == 3 and told.top[0][1] >= told.top[1][1] >= told.top[2][1]


def test_the_compact_vocabulary_serves_unknown_tokens_and_never_draws_one(make: Make) -> None:
    ids = tuple(range(3, 300, 9))
    runner = make(replace(SHAPE, vocab_size=1000, vocabulary_rows=(*ids[:10], -1, *ids[10:])))
    hot = SamplingParams(temperature=5.0, seed=1)
    requests = [Request(slot, runner, [first, 999, 3], hot) for slot, first in enumerate((0, 500, 12))]
    first, second, third = run(runner, requests, 8)
    # 0 and 500 are both unknown, hence the same to the model.
    assert first == second != third
    assert {token.token_id for tokens in (first, second, third) for token in tokens} <= set(ids)
