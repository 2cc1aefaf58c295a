"""Our transformer and runner against Transformers' GptOssForCausalLM, in float32, on small random checkpoints."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Experts, Layout, Shape, random_tensors, write_checkpoint
from tests.support.runner_driver import ScatteredSequence, make_runner, poison
from tests.support.transformers_twin import transformers_twin
from torch import Tensor
from transformers import GptOssForCausalLM

from chorus_workers.model.checkpoint import load_model
from chorus_workers.runner import step_plan
from chorus_workers.runner.base import SequenceChunk
from chorus_workers.runner.reference import ReferenceRunner

TOLERANCE = 1e-4
# Longer than the widest window, and no multiple of a page.
PROMPT_LENGTH = 180

SHAPES = {
    "window 128": Shape(),
    "window 5, other sizes": Shape(
        num_layers=3,
        num_experts=9,
        num_experts_per_token=4,
        hidden_size=64,
        intermediate_size=96,
        num_heads=8,
        num_kv_heads=4,
        head_dim=18,
        vocab_size=97,
        window=5,
    ),
}


class Twins:
    """One checkpoint, loaded by Transformers and by us."""

    def __init__(self, folder: Path, shape: Shape, layout: Layout = "hugging_face", experts: Experts = "mxfp4") -> None:
        self.shape = shape
        self.theirs: GptOssForCausalLM = transformers_twin(shape, random_tensors(shape, experts))
        self.runner: ReferenceRunner = make_runner(
            load_model(write_checkpoint(folder, shape, layout=layout, experts=experts))
        )
        generator = torch.Generator().manual_seed(11)
        self.prompt = torch.randint(0, shape.vocab_size, (PROMPT_LENGTH,), generator=generator).tolist()

    def their_logits(self, token_ids: list[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.theirs(torch.tensor([token_ids])).logits[0]
        return logits

    def our_logits(self, chunks: list[SequenceChunk]) -> Tensor:
        return self.runner.logits(self.runner.forward(chunks))


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.mark.parametrize("chunk_size", [PROMPT_LENGTH, 150, 37, 4, 1])
def test_logits_match_however_the_prompt_is_cut(twins: Twins, chunk_size: int) -> None:
    poison(twins.runner)
    expected = twins.their_logits(twins.prompt)
    sequence = ScatteredSequence(3, twins.runner)
    for start in range(0, PROMPT_LENGTH, chunk_size):
        part = twins.prompt[start : start + chunk_size]
        logits = twins.our_logits([sequence.chunk(part)])[0]
        assert float((logits - expected[start + len(part) - 1]).abs().max()) < TOLERANCE


@pytest.mark.parametrize("chunk_size", [PROMPT_LENGTH, 49, 1])
def test_64_greedy_tokens_are_the_same(twins: Twins, chunk_size: int) -> None:
    poison(twins.runner)
    with torch.inference_mode():
        generated = twins.theirs.generate(
            torch.tensor([twins.prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
        )
    expected = generated[0, PROMPT_LENGTH:].tolist()
    assert len(set(expected)) > 16, "a loop of few tokens would show little"
    sequence = ScatteredSequence(0, twins.runner)
    cuts = [*range(0, PROMPT_LENGTH, chunk_size), PROMPT_LENGTH]
    for start, end in pairwise(cuts):
        logits = twins.our_logits([sequence.chunk(twins.prompt[start:end])])
    tokens = [int(logits.argmax())]
    while len(tokens) < 64:
        tokens.append(int(twins.our_logits([sequence.chunk(tokens[-1:])]).argmax()))
    assert tokens == expected


def test_mixed_batches_match_too(twins: Twins) -> None:
    """Three requests of different lengths and phases in every step, on slots and pages of their own."""
    poison(twins.runner)
    prompts = [twins.prompt[:140], twins.prompt[30:49], twins.prompt[::-1][:100]]
    expected = [twins.their_logits(prompt) for prompt in prompts]
    # Chunk sizes step by step; 0: the request isn't in the step.
    schedule = ((130, 1, 0), (1, 1, 60), (7, 16, 1), (1, 1, 1), (1, 0, 38))
    sequences = [ScatteredSequence(slot, twins.runner) for slot in (4, 0, 2)]
    for sizes in schedule:
        chunks, ends = [], []
        for sequence, prompt, logits, size in zip(sequences, prompts, expected, sizes, strict=True):
            if size:
                chunks.append(sequence.chunk(prompt[sequence.num_computed : sequence.num_computed + size]))
                ends.append(logits[sequence.num_computed - 1])
        assert float((twins.our_logits(chunks) - torch.stack(ends)).abs().max()) < TOLERANCE
    assert [sequence.num_computed for sequence in sequences] == [140, 19, 100]


@pytest.mark.parametrize(("name", "value"), [("_TILE_QUERIES", 16), ("_TILE_SCORES", 2000), ("_GROUP_ROWS", 40)])
def test_how_the_work_is_cut_changes_nothing(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    poison(twins.runner)
    monkeypatch.setattr(step_plan, name, value)
    expected = twins.their_logits(twins.prompt)
    sequences = [ScatteredSequence(slot, twins.runner) for slot in (1, 4, 0)]
    for start, end in ((0, 150), (150, 179), (179, 180)):
        logits = twins.our_logits([sequence.chunk(twins.prompt[start:end]) for sequence in sequences])
        assert float((logits - expected[end - 1]).abs().max()) < TOLERANCE


def test_no_row_of_a_ring_is_written_twice_in_a_step(twins: Twins) -> None:
    sequences = [ScatteredSequence(slot, twins.runner) for slot in (1, 2)]
    plan = step_plan.plan_step([sequence.chunk(twins.prompt) for sequence in sequences], twins.runner.memory, 6)
    assert len(plan.ring_writes) == len(set(plan.ring_writes.tolist())) == 2 * twins.shape.window
    assert plan.ring_tokens is not None and int(plan.ring_tokens[0]) == PROMPT_LENGTH - twins.shape.window


@pytest.mark.parametrize("layout", ["hugging_face", "original"])
@pytest.mark.parametrize("experts", ["mxfp4", "bfloat16"])
def test_every_layout_gives_the_same_model(tmp_path: Path, layout: Layout, experts: Experts) -> None:
    twins = Twins(tmp_path, Shape(num_layers=2, window=16), layout, experts)
    logits = twins.our_logits([ScatteredSequence(1, twins.runner).chunk(twins.prompt)])[0]
    assert float((logits - twins.their_logits(twins.prompt)[-1]).abs().max()) < TOLERANCE


def test_experts_that_stay_packed_give_the_same_logits(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, Shape(num_layers=2))
    logits = []
    for limit in (0, 1 << 40):
        runner = make_runner(load_model(folder, unpacked_experts_limit=limit))
        logits.append(runner.logits(runner.forward([ScatteredSequence(0, runner).chunk(list(range(50)))])))
    assert torch.equal(logits[0], logits[1])
