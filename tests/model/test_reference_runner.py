"""The reference runner as the engine sees it: batches in, tokens out; memory, isolation, set-up."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.runner_driver import ScatteredSequence, make_runner, poison

from chorus_workers.model.checkpoint import CheckpointError, load_model
from chorus_workers.model.config import read_config
from chorus_workers.runner.base import Batch, SampleRequest, SequenceChunk
from chorus_workers.runner.config import RunnerConfig, host_page_bytes, resolve
from chorus_workers.runner.factory import create_runner
from chorus_workers.runner.reference import ReferenceRunner
from chorus_workers.sampling_params import SamplingParams

SHAPE = Shape(num_layers=4, window=9, vocab_size=83)
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRunner:
    return make_runner(load_model(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPE)))


class Request(ScatteredSequence):
    """A request that prefills its prompt in one chunk and then decodes."""

    def __init__(self, slot: int, runner: ReferenceRunner, prompt: list[int], params: SamplingParams = GREEDY) -> None:
        super().__init__(slot, runner)
        self.tokens, self.num_prompt_tokens, self.params = list(prompt), len(prompt), params
        self.failed = False

    def next_chunk(self) -> SequenceChunk:
        chunk = self.chunk(self.tokens[self.num_computed :])
        return replace(
            chunk, sample=SampleRequest(self.params, tuple(self.tokens), self.num_prompt_tokens, len(self.tokens))
        )

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]


def run_steps(runner: ReferenceRunner, requests: list[Request], num_steps: int) -> None:
    for _ in range(num_steps):
        result = runner.run(Batch([request.next_chunk() for request in requests]))
        for request, token in zip(requests, result.sampled, strict=True):
            assert token is not None
            request.tokens.append(token.token_id)
            request.failed |= token.failed


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(0, 83, (n,), generator=generator).tolist() for n in (30, 3, 64, 1, 11)]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=1.0, seed=7, top_p=0.9)])
def test_a_crowd_generates_what_each_does_alone(runner: ReferenceRunner, params: SamplingParams) -> None:
    poison(runner)
    crowd = [Request(slot, runner, prompt, params) for slot, prompt in enumerate(prompts())]
    run_steps(runner, crowd, 40)
    for slot, prompt in enumerate(prompts()):
        alone = Request(4 - slot, runner, prompt, params)
        run_steps(runner, [alone], 40)
        assert alone.generated == crowd[slot].generated


def test_recompute_after_preemption_goes_on_with_the_same_tokens(runner: ReferenceRunner) -> None:
    params = SamplingParams(temperature=0.8, seed=2**63 + 1)
    whole = Request(0, runner, prompts()[0], params)
    run_steps(runner, [whole], 30)
    resumed = Request(3, runner, whole.tokens[: 30 + 12], params)
    run_steps(runner, [resumed], 18)
    assert resumed.tokens == whole.tokens


def test_a_failing_request_leaves_the_others_and_its_successors_alone(tmp_path: Path) -> None:
    """One token's embedding is not a number: whoever has it in the prompt fails, in any batch, and nobody else."""
    model = load_model(write_checkpoint(tmp_path, SHAPE))
    runner = make_runner(model)
    clean = [[token % 80 for token in prompt] for prompt in prompts()]
    without = SamplingParams(temperature=0.0, logit_bias={82: -100.0})
    expected = [Request(slot, runner, prompt, without) for slot, prompt in enumerate(clean)]
    run_steps(runner, expected, 12)
    model.embedding[82] = torch.nan
    requests = [Request(slot, runner, prompt, without) for slot, prompt in enumerate(clean)]
    bad = Request(4, runner, [5, 82, 6])
    run_steps(runner, [*requests[:4], bad], 1)
    assert bad.failed and not any(request.failed for request in requests)
    # The next request takes over the slot and the pages, and the garbage in them.
    run_steps(runner, requests[:4], 1)
    run_steps(runner, requests[4:], 2)
    run_steps(runner, requests, 10)
    assert [request.generated for request in requests] == [request.generated for request in expected]


def test_subnormal_numbers_are_zero_within_a_step_only(runner: ReferenceRunner) -> None:
    """Unpacking MXFP4 needs them; attention is slow with them."""
    seen = []

    def experts(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        seen.append(float(torch.full((64,), 1e-20).mul(1e-20).sum()))
        return x

    ops = runner._transformer.ops
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "experts", experts)
        runner.run(Batch([Request(0, runner, [1]).chunk([1])]))
    assert seen == [0.0] * SHAPE.num_layers
    assert float(torch.full((64,), 1e-20).mul(1e-20).sum()) > 0


def test_a_model_without_window_layers_and_one_with_nothing_else(tmp_path: Path) -> None:
    for kind in ("full_attention", "sliding_attention"):
        shape = Shape(num_layers=2, window=6, vocab_size=83, overrides={"layer_types": [kind] * 2})
        runner = make_runner(load_model(write_checkpoint(tmp_path / kind, shape)))
        crowd = [Request(slot, runner, prompt) for slot, prompt in enumerate(prompts())]
        run_steps(runner, crowd, 10)
        alone = Request(4, runner, prompts()[0])
        for token in prompts()[0][:-1]:
            runner.run(Batch([alone.chunk([token])]))
        run_steps(runner, [alone], 10)
        assert alone.generated == crowd[0].generated


CONFIG = RunnerConfig("", max_model_len=100, block_size=16, num_blocks=None, num_slots=3, max_batched_tokens=64)


def test_the_factory_makes_a_runner_that_runs(tmp_path: Path) -> None:
    runner = create_runner(replace(CONFIG, model=str(write_checkpoint(tmp_path, SHAPE))))
    assert (runner.info.vocab_size, runner.info.max_model_len, runner.info.num_slots) == (83, 100, 3)
    sample = SampleRequest(GREEDY, (1, 2, 3), 3, 3)
    table = list(range(runner.info.num_blocks))[-7:]
    result = runner.run(Batch([SequenceChunk("a", 2, 0, (1, 2, 3), table, sample)]))
    assert result.sampled[0] is not None and 0 <= result.sampled[0].token_id < 83
    runner.close()


def test_the_factory_refuses_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json: the file is missing"):
        create_runner(replace(CONFIG, model=str(tmp_path)))


def test_resolve_fills_in_what_is_open(tmp_path: Path) -> None:
    model = read_config(write_checkpoint(tmp_path, SHAPE))
    # Two full layers, two KV heads of 20, keys and values, 4 bytes: 640 bytes a position, 10,240 a block.
    assert resolve(CONFIG, model, 10**12).num_blocks == -(-300 // 16)
    assert resolve(CONFIG, model, host_page_bytes(4 * 10_240 * 9)).num_blocks == 9
    assert resolve(replace(CONFIG, max_model_len=None), model, 10**12).max_model_len == 131072
    assert resolve(replace(CONFIG, num_blocks=12), model, 0).num_blocks == 12


@pytest.mark.parametrize(
    ("changes", "page_bytes", "message"),
    [
        ({"max_model_len": 131073}, 10**12, "max_model_len 131073 is more than the model's 131072 positions"),
        ({"num_blocks": 6}, 10**12, "num_blocks 6 of 16 positions can't hold one request of max_model_len 100"),
        ({}, 10_000, "num_blocks 0 of 16 positions can't hold"),
    ],
)
def test_resolve_refuses_what_cannot_be(tmp_path: Path, changes: dict[str, int], page_bytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(replace(CONFIG, **changes), read_config(write_checkpoint(tmp_path, SHAPE)), page_bytes)
