"""The Triton runner against the reference runner: the same chunks, the same logits but for bfloat16.

On a machine without a GPU the kernels run in Triton's interpreter, where the two that take most of its time, the dense
product and the experts, give way to PyTorch here, but for one test; their own tests are in tests/kernels.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import TINY, Shape, write_checkpoint
from tests.support.runner_driver import ScatteredSequence, make_runner
from tests.support.triton_stand_ins import DEVICE, stand_in
from torch import Tensor

from chorus_kernels.attention.reference import rounded
from chorus_workers.model.checkpoint import CheckpointError, load_model, load_model_as
from chorus_workers.runner import reference
from chorus_workers.runner.base import Batch, SampleRequest, SequenceChunk
from chorus_workers.runner.hybrid_attention import HybridAttention
from chorus_workers.runner.reference import ReferenceRunner
from chorus_workers.runner.triton import transformer
from chorus_workers.runner.triton.form import DeviceForm, product_tiles
from chorus_workers.runner.triton.runner import TritonRunner
from chorus_workers.runner.triton.step import is_prefill, prepare_step
from chorus_workers.sampling_params import SamplingParams

SHAPE = Shape(num_experts=5, num_experts_per_token=2, head_dim=16, vocab_size=83, window=9)
GREEDY = SamplingParams(temperature=0.0)
# bfloat16 keeps 8 bits; each layer rounds some ten times, and rounding errors add up as the root of their number.
RMS_TOLERANCE = 0.04
FP8 = torch.float8_e4m3fn


class Pair:
    """One checkpoint in both runners."""

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        dtype: torch.dtype = torch.bfloat16,
        kv_dtype: torch.dtype | None = None,
        batch_invariant: bool = False,
    ) -> None:
        write_checkpoint(folder, shape)
        self.reference: ReferenceRunner = make_runner(load_model(folder), num_snapshots=3)
        model = load_model_as(DeviceForm(DEVICE, dtype), folder)
        tiles = None if batch_invariant else product_tiles(model)
        self.triton = TritonRunner(model, self.reference.info, kv_dtype, tiles, batch_invariant=batch_invariant)
        self.tolerance = RMS_TOLERANCE
        for memory in self.triton.memory.layers:
            memory.fill_(torch.nan)
        for model in (self.reference._transformer.model, self.triton._transformer.model):
            for layer in model.layers:
                # A choice between equal experts would fall one way in one runner, and the other way in the other.
                layer.router_bias.copy_(3 * torch.arange(shape.num_experts))

    def check(self, chunks: list[SequenceChunk]) -> None:
        """Runs a step in both, and compares the logits after every chunk."""
        expected = self.reference.logits(self.reference.forward(chunks))
        assert float(relative_error(self.logits(chunks), expected).max()) < self.tolerance

    def logits(self, chunks: list[SequenceChunk]) -> Tensor:
        """The Triton runner's, after each chunk."""
        sampled = [replace(chunk, sample=chunk.sample or SampleRequest(GREEDY, (), 0, 0)) for chunk in chunks]
        return self.triton.logits(Batch(sampled)).cpu()


def relative_error(actual: Tensor, expected: Tensor) -> Tensor:
    """Root of the mean square, of each row."""
    assert actual.shape == expected.shape
    return (actual - expected).square().mean(-1).sqrt() / expected.square().mean(-1).sqrt()


@pytest.fixture
def in_reach_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


NewPair = Callable[..., Pair]


@pytest.fixture
def new_pair(tmp_path: Path, in_reach_of_the_interpreter: None) -> NewPair:
    return lambda shape, *dtypes: Pair(tmp_path, shape, *dtypes)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 83, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_every_kernel_at_once(tmp_path: Path) -> None:
    """With nothing in any kernel's place: a prompt of more than eight tokens, and two steps of decode."""
    pair = Pair(tmp_path, replace(TINY, window=5))
    sequence, prompt = ScatteredSequence(1, pair.reference), tokens(11, 0)
    for start, end in ((0, 9), (9, 10), (10, 11)):
        pair.check([sequence.chunk(prompt[start:end])])


def test_every_kernel_of_the_batch_invariant_mode(tmp_path: Path) -> None:
    """A prompt whose last chunk is one token, and two steps of decode."""
    pair = Pair(tmp_path, replace(TINY, window=5), batch_invariant=True)
    sequence, sequence_tokens = ScatteredSequence(1, pair.reference), tokens(12, 0)
    for start, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
        chunk = sequence.chunk(sequence_tokens[start:end])
        chunk = replace(chunk, sample=SampleRequest(GREEDY, (), 10, end))
        assert is_prefill(chunk, batch_invariant=True) == (start < 10)
        pair.check([chunk])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")
def test_a_request_has_the_same_bits_alone_and_among_others(tmp_path: Path) -> None:
    """And however its prompt is cut, with chunks of one token among them."""
    pair = Pair(tmp_path, replace(SHAPE, window=16), batch_invariant=True)
    found = []
    for crowd, sizes in ((0, (36,)), (1, (35, 1)), (2, (1, 20, 1, 1, 13))):
        sequences = [ScatteredSequence(slot, pair.reference) for slot in range(crowd + 1)]
        prompts = [tokens(40, slot) for slot in range(crowd + 1)]
        logits = torch.empty(0)
        for size in (*sizes, 1, 1, 1, 1):
            chunks = []
            for sequence, prompt in zip(sequences, prompts, strict=True):
                begin = sequence.num_computed
                chunk = sequence.chunk(prompt[begin : begin + size])
                chunks.append(replace(chunk, sample=SampleRequest(GREEDY, (), 36, begin + size)))
            logits = pair.logits(chunks)[0]
        found.append(logits)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("sizes", [(40,), (8, 9, 10, 13), (1, 20, 1, 1, 17)])
def test_however_the_prompt_is_cut(new_pair: NewPair, sizes: tuple[int, ...]) -> None:
    pair, prompt = new_pair(SHAPE), tokens(40, 1)
    sequence = ScatteredSequence(3, pair.reference)
    for size in sizes:
        pair.check([sequence.chunk(prompt[sequence.num_computed : sequence.num_computed + size])])


def test_mixed_batches_on_used_memory(new_pair: NewPair) -> None:
    """Requests of different lengths and phases in every step; then others on the same slots and pages."""
    pair = new_pair(SHAPE)
    for seed in (2, 3):
        prompts = [tokens(length, seed * 10 + length) for length in (36, 5, 20)]
        sequences = [ScatteredSequence(slot, pair.reference) for slot in (4, 0, 2)]
        for sizes in ((30, 1, 0), (1, 1, 15), (3, 2, 1), (1, 1, 1)):
            pair.check(
                [
                    sequence.chunk(prompt[sequence.num_computed : sequence.num_computed + size])
                    for sequence, prompt, size in zip(sequences, prompts, sizes, strict=True)
                    if size
                ]
            )


def test_requests_begin_where_a_snapshot_was_taken(new_pair: NewPair) -> None:
    """Taken in the middle of a chunk, at its end, and at the end of a chunk of one token; pages are shared."""
    pair, prompt = new_pair(SHAPE), tokens(40, 6)
    first = ScatteredSequence(1, pair.reference)
    pair.check([replace(first.chunk(prompt[:21]), saves=((14, 2), (21, 0)))])
    pair.check([first.chunk(prompt[21:27])])
    pair.check([replace(first.chunk(prompt[27:28]), saves=((28, 1),))])
    for slot, (start, snapshot) in enumerate(((14, 2), (21, 0), (28, 1)), start=2):
        later = ScatteredSequence(slot, pair.reference)
        later.block_table[: start // 7] = first.block_table[: start // 7]
        later.num_computed = start
        pair.check([replace(later.chunk(tokens(5, slot)), restore=snapshot), first.chunk([slot])])
        pair.check([later.chunk([1])])


def test_no_row_of_a_ring_is_written_twice_in_a_step(new_pair: NewPair) -> None:
    pair = new_pair(SHAPE)
    chunks = [ScatteredSequence(slot, pair.reference).chunk(tokens(length, 5)) for slot, length in ((1, 30), (2, 4))]
    prefill = prepare_step(chunks, pair.triton.memory, 3, DEVICE).inputs.attention.prefill
    assert prefill is not None
    rows = prefill.ring_rows.tolist()
    # Position p of slot s lies in row 9 s + p % 9.
    assert rows == [*[-1] * 21, *(9 + position % 9 for position in range(21, 30)), *range(18, 22)]


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_a_model_without_window_layers_and_one_with_nothing_else(new_pair: NewPair, kind: str) -> None:
    pair = new_pair(replace(SHAPE, num_layers=2, overrides={"layer_types": [kind] * 2}))
    sequence = ScatteredSequence(1, pair.reference)
    for part in (tokens(21, 4), [5], [6]):
        pair.check([sequence.chunk(part)])


def test_the_compact_vocabulary(new_pair: NewPair) -> None:
    ids = tuple(range(3, 300, 9))
    shape = Shape(num_layers=2, vocab_size=1000, head_dim=16, vocabulary_rows=(*ids[:10], -1, *ids[10:]))
    pair = new_pair(shape)
    sequence = ScatteredSequence(0, pair.reference)
    pair.check([sequence.chunk([0, 500, 12, 999])])


class RoundedAttention(HybridAttention):
    """The reference's, over keys and values that float8_e4m3fn holds."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        return super().attend(layer, q, rounded(k, FP8).float(), rounded(v, FP8).float(), sinks)


def test_fp8_kv_costs_what_rounding_costs(new_pair: NewPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the reference: the runner over fp8 is as far from it as the reference over rounded keys and values. Of a
    random model, whose attention is sharper than a real one's; benchmarks/kv_dtype.py asks those."""
    pair, prompt = new_pair(SHAPE, torch.bfloat16, FP8), tokens(40, 1)
    assert all(memory.dtype == FP8 for memory in pair.triton.memory.layers)

    def logits(step: Callable[[list[SequenceChunk]], Tensor]) -> Tensor:
        sequence = ScatteredSequence(3, pair.reference)
        return torch.cat([step([sequence.chunk(prompt[sequence.num_computed : stop])]) for stop in range(20, 41)])

    def reference_step(chunks: list[SequenceChunk]) -> Tensor:
        return pair.reference.logits(pair.reference.forward(chunks))

    expected, actual = logits(reference_step), logits(pair.logits)
    monkeypatch.setattr(reference, "HybridAttention", RoundedAttention)
    cost = float(relative_error(logits(reference_step), expected).mean())
    assert 0.02 < cost < 0.2
    assert float(relative_error(actual, expected).mean()) < 1.25 * cost + RMS_TOLERANCE


@pytest.fixture
def rounded_pair(new_pair: NewPair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Both round keys and values to fp8, and nothing else: where one has rounded in another place, it shows."""
    if DEVICE.type == "cuda":
        pytest.skip("kernels of products take bfloat16 only")
    # As does the one for few tokens, of those that the interpreter runs.
    monkeypatch.setattr(transformer, "MAX_TOKENS", 0)
    monkeypatch.setattr(reference, "HybridAttention", RoundedAttention)
    return new_pair(SHAPE, torch.float32, FP8)


def assert_same_but_for_ties(errors: list[Tensor]) -> None:
    """Numbers that all but lie in the middle between two of fp8 may fall either way, and are few."""
    all_errors = torch.cat(errors)
    assert float(all_errors.median()) < 1e-5 and float(all_errors.max()) < 0.05


def test_fp8_kv_is_the_reference_s_rounded(rounded_pair: Pair) -> None:
    """Prefill, decode, both at once, and a request that begins from a snapshot and shares pages."""
    pair, prompt, errors = rounded_pair, tokens(40, 6), []
    first, second, later = (ScatteredSequence(slot, pair.reference) for slot in (1, 3, 2))

    def check(*chunks: SequenceChunk) -> None:
        expected = pair.reference.logits(pair.reference.forward(chunks))
        errors.append(relative_error(pair.logits(list(chunks)), expected))

    check(replace(first.chunk(prompt[:21]), saves=((14, 2), (21, 0))), second.chunk(prompt[:1]))
    check(first.chunk(prompt[21:22]), second.chunk(prompt[1:12]))
    check(first.chunk(prompt[22:23]), second.chunk(prompt[12:13]))
    later.block_table[:2], later.num_computed = first.block_table[:2], 14
    check(replace(later.chunk(prompt[14:19]), restore=2), first.chunk(prompt[23:24]))
    check(later.chunk([7]))
    assert_same_but_for_ties(errors)


def test_no_cut_of_a_prompt_changes_an_answer_over_fp8_kv(rounded_pair: Pair) -> None:
    pair, prompt = rounded_pair, tokens(40, 1)

    def logits(slot: int, sizes: tuple[int, ...]) -> Tensor:
        sequence = ScatteredSequence(slot, pair.reference)
        parts = [pair.logits([sequence.chunk(prompt[sequence.num_computed :][:size])]) for size in sizes]
        return parts[-1]

    whole = logits(0, (40,))
    cuts = ((8, 9, 10, 13), (1, 20, 1, 1, 17), (30, *[1] * 10))
    assert_same_but_for_ties([relative_error(logits(1, sizes), whole) for sizes in cuts])


def test_experts_that_are_not_packed_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(SHAPE, num_layers=1), experts="bfloat16")
    with pytest.raises(CheckpointError, match=r"gate_up_proj: the Triton runner takes experts in MXFP4 only"):
        load_model_as(DeviceForm(DEVICE), tmp_path)
