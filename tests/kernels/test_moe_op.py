"""The Triton kernels of the mixture of experts: against fp64.

torch.empty gives NaN and the largest integers here: what a kernel reads without having written it shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from chorus_kernels.moe import _decode_kernel, _grouped_kernel, few_tokens, many_tokens, op, reference
from chorus_kernels.moe.expert_layer import ExpertLayer
from chorus_kernels.moe.layout import PackedExperts, pack_experts
from chorus_kernels.moe.many_tokens import Tiles
from chorus_kernels.mxfp4 import unpack_mxfp4

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDING = 2.0**-8  # of bfloat16, relative
# The interpreter's numpy warns where NaN is what should come out.


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*size: Any, **options: Any) -> Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def tensors_on_the_device() -> Iterator[None]:
    with DEVICE:
        yield


def random(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cpu").to(DEVICE)


def integers(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, shape, generator=generator, device="cpu").to(DEVICE)


@dataclass(frozen=True)
class Layer:
    """One layer's experts, packed and as float64 matrices."""

    gate_up: Tensor
    gate_up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    packed_gate_up: PackedExperts
    packed_down: PackedExperts

    def part(self, low: int, high: int) -> ExpertLayer:
        def cut(packed: PackedExperts) -> PackedExperts:
            parts = (tensor[low:high] for tensor in (packed.words, packed.scales, packed.units))
            return PackedExperts(*parts, packed.num_rows, packed.num_columns)

        biases = self.gate_up_bias[low:high], self.down_bias[low:high]
        return ExpertLayer(cut(self.packed_gate_up), biases[0], cut(self.packed_down), biases[1], first_expert=low)


def make_layer(num_experts: int, hidden: int, inner: int, largest_scale: int = 124) -> Layer:
    generator = random(hidden + inner)

    def matrices(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        shape = (num_experts, rows, columns // 32)
        blocks = integers(0, 256, (*shape, 16), generator).byte()
        return blocks, integers(largest_scale - 4, largest_scale + 1, shape, generator).byte()

    gate_up, down = matrices(2 * inner, hidden), matrices(hidden, inner)
    biases = [normal(num_experts, width, generator=generator).bfloat16() for width in (2 * inner, hidden)]
    return Layer(
        unpack_mxfp4(*gate_up).double(), biases[0], unpack_mxfp4(*down).double(), biases[1],
        pack_experts(*gate_up), pack_experts(*down),
    )  # fmt: skip


def expected_output(layer: Layer, x: Tensor, experts: Tensor, weights: Tensor, roundings: int) -> tuple[Tensor, Tensor]:
    """The output in float64, and how far off each element may be: the hidden values are rounded once, and with two
    roundings each expert's output too; float32 sums are off by less than 1e-5 of what they add up."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    bound = torch.zeros_like(out)
    for t, (chosen, shares) in enumerate(zip(experts.tolist(), weights.double().tolist(), strict=True)):
        for e, share in zip(chosen, shares, strict=True):
            hidden = reference.swiglu(layer.gate_up[e] @ x[t].double() + layer.gate_up_bias[e].double())
            row = layer.down[e] @ hidden + layer.down_bias[e].double()
            out[t] += share * row
            bound[t] += share * (ROUNDING + 1e-5) * (layer.down[e].abs() @ hidden.abs())
            bound[t] += share * (ROUNDING * (roundings - 1) + 1e-5) * row.abs()
    return out, bound


def assert_close(actual: Tensor, expected: Tensor, bound: Tensor, roundings: int) -> None:
    error = actual.double() - expected
    assert bool((error.abs() <= bound).all()), f"{(error.abs() / bound).max()} times the bound"
    # Errors of roundings are uniform at most: RMS 2^-8 / sqrt(3) each, and independent.
    assert error.norm() <= ROUNDING * (roundings / 3) ** 0.5 * expected.norm()


def make_tokens(num_tokens: int, hidden: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = random(num_tokens)
    x = normal(num_tokens, hidden, generator=generator).bfloat16()
    experts, weights = reference.route(normal(num_tokens, num_experts, generator=generator), top_k)
    return x, experts.int(), weights


def run(layer: Layer, x: Tensor, experts: Tensor, weights: Tensor, **arguments: Any) -> Tensor:
    arguments = {"out_dtype": torch.float32} | arguments
    low, high = arguments.pop("part", (0, layer.gate_up.shape[0]))
    return op.experts(x, experts, weights, layer.part(low, high), **arguments)


@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 7, 3), (5, 128, 4), (66, 5, 5), (0, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_route(num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype) -> None:
    logits = normal(num_tokens, num_experts, generator=random(1)).to(dtype)
    experts, weights = op.route(logits, top_k)
    # A stable sort gives equals, of which bfloat16 has many, in their order.
    expected = logits.float().sort(dim=-1, descending=True, stable=True)
    assert experts.dtype == torch.int32 and torch.equal(experts, expected.indices[:, :top_k].int())
    assert torch.allclose(weights, expected.values[:, :top_k].softmax(-1), atol=1e-6, rtol=0)
    bias = normal(num_experts, generator=random(2)).bfloat16()
    progress = torch.full(experts.shape, 7, dtype=torch.int32)
    for found, known in zip(
        op.route(logits, top_k, bias, progress), op.route(logits.float() + bias, top_k), strict=True
    ):
        assert torch.equal(found, known)
    assert not progress.any()


def test_route_gives_ties_to_the_lower_number() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0], [-torch.inf] * 5, [0.0, -torch.inf, -torch.inf, -0.0, -1.0]])
    experts, weights = op.route(logits, 3)
    assert experts.tolist() == [[1, 2, 4], [0, 1, 2], [0, 3, 4]]
    assert torch.allclose(weights[0], torch.full((3,), 1 / 3)) and weights[1].isnan().all()


def test_route_keeps_nan_in_its_row() -> None:
    logits = normal(6, 5, generator=random(2))
    clean = op.route(logits, 3)
    logits[1, 3], logits[4] = torch.nan, torch.nan
    experts, weights = op.route(logits, 3)
    assert all(len({e for e in row if 0 <= e < 5}) == 3 for row in experts.tolist())
    assert weights.isnan().all(-1).tolist() == [False, True, False, False, True, False]
    sound = torch.tensor([0, 2, 3, 5])
    assert torch.equal(experts[sound], clean[0][sound]) and torch.equal(weights[sound], clean[1][sound])


@triton.jit
def weights_kernel(words_ptr, scales_ptr, out_ptr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 128)
    words = tl.load(words_ptr + tl.program_id(0) * 128 + at)[None, None, :]
    g = tl.arange(0, 8)
    scales = tl.load(scales_ptr + tl.program_id(0) * 32 + g * 4)[None, None, :, None]
    values = _grouped_kernel._weights(words, scales, 1, 1)  # [16, 64]
    to = tl.program_id(0) * 1024 + tl.arange(0, 16)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out_ptr + to, values)


def test_weights_are_exact() -> None:
    scales = (0, 1, 64, 113, 120, 127, 128)
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 8, 2, 16).repeat(len(scales), 2, 1, 1)
    exponents = torch.tensor(scales, dtype=torch.uint8).view(-1, 1, 1).repeat(1, 16, 2)
    exponents[:, 1::2, 1] //= 2  # neighbours in a word must differ
    packed = pack_experts(blocks, exponents)
    out = torch.empty(len(scales), 16, 64, dtype=torch.bfloat16, device=DEVICE)
    weights_kernel[(len(scales),)](packed.words, packed.scales, out)
    rows = out.view(-1, 2, 8, 64).transpose(1, 2).reshape(-1, 16, 64)  # (half, g) to (g, half)
    # block, j % 2, upper, t, p
    columns = rows.view(-1, 16, 2, 2, 2, 4, 2).permute(0, 1, 2, 5, 3, 4, 6)
    assert torch.equal(columns.reshape(-1, 16, 64).float(), unpack_mxfp4(blocks, exponents))


@triton.jit
def one_step_kernel(words_ptr, scales_ptr, x_ptr, out_ptr):  # type: ignore[no-untyped-def]
    words = tl.load(words_ptr + tl.program_id(0) * 128 + tl.arange(0, 128))
    g = tl.arange(0, 32) // 4
    scales = tl.load(scales_ptr + tl.program_id(0) * 32 + g * 4)
    x = _decode_kernel._load_columns(x_ptr + tl.arange(0, 8) * 64, 0, 64)
    acc = _decode_kernel._add_step(tl.zeros([2, 8, 4, 2], tl.float32), words, scales, x)
    to = tl.program_id(0) * 128 + tl.arange(0, 16)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out_ptr + to, tl.reshape(acc, 16, 8))


def test_weights_of_few_tokens_are_exact() -> None:
    """Column by column of the matrix, through unit vectors."""
    scales = (0, 1, 64, 113, 120, 127, 128)
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 8, 2, 16).repeat(len(scales), 2, 1, 1)
    exponents = torch.tensor(scales, dtype=torch.uint8).view(-1, 1, 1).repeat(1, 16, 2)
    exponents[:, 1::2, 1] //= 2
    packed = pack_experts(blocks, exponents)
    columns = []
    for first in range(0, 64, 8):
        x = torch.zeros(8, 64, dtype=torch.bfloat16)
        x[torch.arange(8), first + torch.arange(8)] = 2.0**64
        out = torch.empty(len(scales), 16, 8, device=DEVICE)
        one_step_kernel[(len(scales),)](packed.words, packed.scales, x, out)
        columns.append(out * 2.0**-64)
    rows = torch.cat(columns, -1).view(-1, 2, 8, 64).transpose(1, 2).reshape(-1, 16, 64)  # (half, g) to (g, half)
    assert torch.equal(rows, unpack_mxfp4(blocks, exponents))


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "hidden", "inner"),
    [
        (3, 2, 3, 96, 32),  # shared experts, half a step of K
        (1, 1, 2, 288, 32),  # two loads of K, the second in part
        (1, 1, 2, 32, 288),  # the same in the second product
        (8, 1, 2, 32, 32),  # all columns of a tile
        (1, 1, 2, 800, 32),  # more than the loads that are on their way at once
    ],
)
def test_few_tokens(num_tokens: int, top_k: int, num_experts: int, hidden: int, inner: int) -> None:
    layer = make_layer(num_experts, hidden, inner)
    tokens = make_tokens(num_tokens, hidden, num_experts, top_k)
    expected, bound = expected_output(layer, *tokens, roundings=1)
    assert_close(run(layer, *tokens), expected, bound, roundings=1)


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "size"),
    [
        (3, 3, 4, 96),  # shared experts, half a step of K, half a tile of rows
        (8, 2, 3, 32),  # all columns of a tile
        (4, 1, 2, 800),  # more than the loads that are on their way at once
    ],
)
def test_few_tokens_in_one_launch(num_tokens: int, top_k: int, num_experts: int, size: int) -> None:
    layer = make_layer(num_experts, size, size)
    x, experts, _ = make_tokens(num_tokens, size, num_experts, top_k)
    low, high = 1, num_experts
    mine = ((experts >= low) & (experts < high)).flatten()
    rows = op.expert_rows(x, experts, layer.part(low, high))
    progress = torch.zeros_like(experts)
    once = op.expert_rows(x, experts, layer.part(low, high), progress=progress)
    assert torch.equal(once[mine], rows[mine])
    # An expert's first slot has counted the tiles of gate-up.
    chosen = experts.flatten()
    first = torch.tensor([int((chosen == expert).nonzero()[0]) == slot for slot, expert in enumerate(chosen)])
    assert torch.equal(progress.flatten().cpu(), ((first.to(mine.device) & mine) * (size // 8)).cpu())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")
def test_one_launch_of_gpt_oss_again_and_again() -> None:
    """More programs than a GPU holds at once, so that those of down do wait."""
    layer = make_layer(32, 2880, 2880).part(0, 32)
    for seed in range(50):
        operand = normal(8, 2880, generator=random(seed)).bfloat16() * few_tokens.OPERAND_FACTOR
        progress = torch.full((8, 4), 7, dtype=torch.int32)
        experts, _ = op.route(normal(8, 32, generator=random(seed + 50)), 4, progress=progress)
        once = few_tokens.decode_rows_at_once(operand, experts, layer, progress)
        assert torch.equal(once, few_tokens.decode_rows(operand, experts, layer)), seed


def test_one_launch_is_for_squares_and_for_more_than_two_tokens() -> None:
    for num_tokens, hidden, inner in ((2, 32, 32), (3, 32, 64), (9, 32, 32)):
        layer = make_layer(2, hidden, inner)
        x, experts, _ = make_tokens(num_tokens, hidden, 2, 1)
        progress = torch.zeros_like(experts)
        rows = op.expert_rows(x, experts, layer.part(0, 2), progress=progress)
        assert torch.equal(rows, op.expert_rows(x, experts, layer.part(0, 2))) and not progress.any()
    layer = make_layer(2, 32, 32)
    x, experts, _ = make_tokens(3, 32, 2, 1)
    mixed = replace(layer.part(0, 2), down_bias=layer.down_bias.float())
    progress = torch.zeros_like(experts)
    rows = op.expert_rows(x, experts, mixed, progress=progress)
    assert torch.equal(rows, op.expert_rows(x, experts, layer.part(0, 2))) and not progress.any()


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "hidden", "inner", "dtype"),
    [
        (1, 2, 3, 32, 288, torch.float32),  # each part of K has a load, the last one in part
        (3, 3, 4, 64, 96, torch.bfloat16),  # warps without a slot, a part of K without a load
        (1, 1, 2, 32, 1056, torch.bfloat16),  # more than the loads that are on their way at once
        (8, 1, 2, 96, 32, torch.float32),
    ],
)
@pytest.mark.parametrize("in_down", [False, True])
def test_sum_with_the_residual(
    monkeypatch: pytest.MonkeyPatch,
    in_down: bool,
    num_tokens: int,
    top_k: int,
    num_experts: int,
    hidden: int,
    inner: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(op, "MAX_SUM_TOKENS", op.MAX_DECODE_TOKENS if in_down else 0)
    layer = make_layer(num_experts, hidden, inner)
    tokens = make_tokens(num_tokens, hidden, num_experts, top_k)
    residual = normal(num_tokens, hidden, generator=random(5)).to(dtype)
    expected, bound = expected_output(layer, *tokens, roundings=1)
    y = op.expert_sum(*tokens, layer.part(0, num_experts), residual)
    assert y.dtype == dtype
    expected += residual.double()
    # bfloat16 rounds the sum too.
    roundings = 1 if dtype == torch.float32 else 2
    bound += 1e-6 * expected.abs() if dtype == torch.float32 else ROUNDING * (expected.abs() + bound)
    assert_close(y, expected, bound, roundings)


@pytest.mark.parametrize("in_down", [False, True])
def test_sum_of_a_shard_and_with_nan(monkeypatch: pytest.MonkeyPatch, in_down: bool) -> None:
    monkeypatch.setattr(op, "MAX_SUM_TOKENS", op.MAX_DECODE_TOKENS if in_down else 0)
    layer = make_layer(4, 32, 32)
    x, experts, weights = make_tokens(4, 32, 4, 2)
    residual = normal(4, 32, generator=random(6))

    def shares(x: Tensor, weights: Tensor, low: int, high: int) -> Tensor:
        return op.expert_sum(x, experts, weights, layer.part(low, high), residual) - residual

    expected, bound = expected_output(layer, x, experts, weights, roundings=2)
    clean = [shares(x, weights, *part) for part in ((0, 1), (1, 4))]
    assert_close(clean[0] + clean[1], expected, bound + 1e-5, roundings=2)
    x[1], weights[3] = torch.nan, torch.nan
    dirty = [shares(x, weights, *part) for part in ((0, 1), (1, 4))]
    for low, high, before, after in ((0, 1, clean[0], dirty[0]), (1, 4, clean[1], dirty[1])):
        touched = ((experts >= low) & (experts < high)).any(-1) & torch.tensor([False, True, False, True])
        assert torch.equal(after.isnan().all(-1), touched) and torch.equal(after.isnan().any(-1), touched)
        assert torch.equal(after[~touched], before[~touched])


def test_operand_that_has_its_factor_already() -> None:
    layer = make_layer(2, 32, 32)
    x, experts, _ = make_tokens(1, 32, 2, 2)
    rows = op.expert_rows(x, experts, layer.part(0, 2))
    assert torch.equal(op.expert_rows(x * 2.0**64, experts, layer.part(0, 2), x_factor=2.0**64), rows)
    with pytest.raises(ValueError, match="x_factor"):
        op.expert_rows(x, experts, layer.part(0, 2), x_factor=2.0)
    with pytest.raises(ValueError, match="x_factor"):
        op.expert_rows(x.expand(9, 32).contiguous(), experts.repeat(9, 1), layer.part(0, 2), x_factor=2.0**64)


@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
def test_sum_with_the_residual_is_normed(residual_dtype: torch.dtype) -> None:
    generator = random(7)
    rows = normal(5 * 3, 45, generator=generator)
    _, experts, weights = make_tokens(5, 32, 4, 3)
    residual, norm = normal(5, 45, generator=generator).to(residual_dtype), normal(45, generator=generator).bfloat16()
    mine = (experts >= 1) & (experts < 3)
    rows[~mine.flatten()] = torch.nan  # other shards'
    normed, total = op.combine_norm(rows, experts, weights, residual, norm, 1e-5, num_experts=2, first_expert=1)
    terms = rows.double().nan_to_num().view(5, 3, 45) * (weights * mine).double()[:, :, None]
    exact = terms.sum(1) + residual.double()
    step = 2.0**-24 if residual_dtype == torch.float32 else ROUNDING
    assert normed.dtype == total.dtype == residual_dtype
    assert bool(((total.double() - exact).abs() <= step * exact.abs() + 1e-6 * terms.abs().sum(1) + 1e-6).all())
    addend = normal(45, generator=generator).bfloat16()
    again, more = op.combine_norm(rows, experts, weights, residual, norm, 1e-5, addend, num_experts=2, first_expert=1)
    assert torch.equal(again, normed)
    exact += addend.double()
    assert bool(((more.double() - exact).abs() <= step * exact.abs() + 1e-6 * terms.abs().sum(1) + 1e-6).all())
    kept = total.double()
    expected = kept / (kept.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.double()
    assert bool(((normed.double() - expected).abs() <= (step + 1e-6) * expected.abs()).all())


SMALL = Tiles(rows=64, slots=16, steps=2, num_warps=4, num_stages=1)
TALL = Tiles(rows=128, slots=32, steps=1, num_warps=8, num_stages=1)
DEEP = Tiles(rows=64, slots=16, steps=4, num_warps=4, num_stages=1)


@pytest.mark.parametrize(
    ("tiles", "num_tokens", "top_k", "hidden", "inner"),
    [(SMALL, 9, 3, 160, 96), (TALL, 21, 2, 96, 64), (DEEP, 10, 1, 288, 32)],
)
def test_many_tokens(
    monkeypatch: pytest.MonkeyPatch, tiles: Tiles, num_tokens: int, top_k: int, hidden: int, inner: int
) -> None:
    monkeypatch.setattr(many_tokens, "grouped_tiles", lambda num_slots, num_experts: tiles)
    layer = make_layer(4, hidden, inner)
    tokens = make_tokens(num_tokens, hidden, 4, top_k)
    expected, bound = expected_output(layer, *tokens, roundings=2)
    assert_close(run(layer, *tokens), expected, bound, roundings=2)


def test_one_expert_takes_all_and_others_are_never_read() -> None:
    layer = make_layer(3, 32, 32)
    tokens = make_tokens(37, 32, 3, 1)
    tokens[1].fill_(1)
    expected, bound = expected_output(layer, *tokens, roundings=2)
    for tensor in (layer.packed_gate_up.units, layer.packed_down.units, layer.gate_up_bias, layer.down_bias):
        tensor[torch.tensor([0, 2])] = torch.nan
    assert_close(run(layer, *tokens), expected, bound, roundings=2)


@pytest.mark.parametrize("num_tokens", [2, 9])
def test_shares_of_shards_add_up(num_tokens: int) -> None:
    layer = make_layer(4, 32, 32)
    tokens = make_tokens(num_tokens, 32, 4, 2)
    shares = [run(layer, *tokens, part=part) for part in ((0, 1), (1, 4))]
    expected, bound = expected_output(layer, *tokens, roundings=2)
    assert_close(shares[0] + shares[1], expected, bound, roundings=2)
    nowhere = tokens[1] + 10
    assert not run(layer, tokens[0], nowhere, tokens[2]).any()


@pytest.mark.parametrize("num_tokens", [4, 9])
def test_a_token_does_not_see_its_neighbours(num_tokens: int) -> None:
    layer = make_layer(2, 32, 32)
    x, experts, weights = make_tokens(num_tokens, 32, 2, 2)
    clean = run(layer, x, experts, weights)
    x[1] = torch.nan
    weights[3] = torch.nan
    dirty = run(layer, x, experts, weights)
    assert dirty.isnan().all(-1).nonzero().flatten().tolist() == [1, 3]
    rest = torch.tensor([t for t in range(num_tokens) if t not in (1, 3)])
    assert torch.equal(dirty[rest], clean[rest])


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_scales_beyond_bfloat16(num_tokens: int) -> None:
    layer = make_layer(2, 32, 32, largest_scale=133)
    x, experts, weights = make_tokens(num_tokens, 32, 2, 1)
    tokens = x * 2.0**-8, experts, weights
    expected, bound = expected_output(layer, *tokens, roundings=2)
    assert_close(run(layer, *tokens), expected, bound, roundings=2)


def test_bfloat16_output_is_the_rounded_sum() -> None:
    layer = make_layer(2, 32, 32)
    tokens = make_tokens(2, 32, 2, 2)
    assert torch.equal(run(layer, *tokens, out_dtype=torch.bfloat16), run(layer, *tokens).bfloat16())


def test_zero_tokens() -> None:
    assert run(make_layer(2, 64, 32), *make_tokens(0, 64, 2, 2)).shape == (0, 64)


@pytest.mark.parametrize(("num_slots", "first_expert"), [(50, 0), (50, 3), (7, 9)])
def test_slots_are_sorted_by_expert_and_cut_into_tiles(num_slots: int, first_expert: int) -> None:
    num_experts, block_m = 5, 4
    experts = integers(-1, 9, (num_slots,), random(3)).int()
    experts[experts == first_expert + 2] = first_expert  # an expert without slots, one with many
    num_tiles = -(-num_slots // block_m) + num_experts
    order, tiles = torch.full((num_slots,), -7).int(), torch.full((3, num_tiles), -7).int()
    _grouped_kernel.prepare_kernel[(num_experts,)](
        experts, experts, order, tiles, experts, num_slots, first_expert, num_experts, num_tiles,
        HIDDEN=32, BLOCK_M=block_m, BLOCK_E=8, CHUNK=16, BLOCK_H=32, DEPENDENT=False,
    )  # fmt: skip
    expected_order: list[int] = []
    expected_tiles: list[list[int]] = []
    for e in range(num_experts):
        slots = (experts == first_expert + e).nonzero().flatten().tolist()
        for begin in range(0, len(slots), block_m):
            expected_tiles.append([e, len(expected_order) + begin, min(block_m, len(slots) - begin)])
        expected_order += slots
    assert order.tolist() == expected_order + [-7] * (num_slots - len(expected_order))
    assert tiles[:, : len(expected_tiles)].T.tolist() == expected_tiles
    assert (tiles[0, len(expected_tiles) :] == -1).all()


def test_refusals() -> None:
    layer = make_layer(2, 64, 32)
    x, experts, weights = make_tokens(2, 64, 2, 2)
    wrong: list[tuple[str, tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = [
        ("x must be bfloat16", (x.float(), experts, weights), {}),
        ("experts must be int32", (x, experts.long(), weights), {}),
        ("weights must be float32", (x, experts, weights[:, :1]), {}),
        (r"x must be bfloat16 \[T, 64\]", (x[:, :32].contiguous(), experts, weights), {}),
        ("out_dtype", (x, experts, weights), {"out_dtype": torch.float16}),
        ("experts must be contiguous", (x, experts.T.contiguous().T, weights), {}),
    ]
    for message, tokens, arguments in wrong:
        with pytest.raises(ValueError, match=message):
            run(layer, *tokens, **arguments)
    right = layer.part(0, 2)
    other = make_layer(2, 32, 64).part(0, 2)
    changes: list[tuple[str, dict[str, Any]]] = [
        (r"gate_up must be \[64, H\] matrices, not \[128, 32\]", {"gate_up": other.gate_up}),
        ("down must be 2 matrices with 64 rows, not 1 with 64", {"down": layer.part(0, 1).down}),
        ("gate_up_bias must be", {"gate_up_bias": right.gate_up_bias[:1]}),
        ("down_bias must be", {"down_bias": right.down_bias.half()}),
        ("down_bias must be contiguous", {"down_bias": right.down_bias.T.contiguous().T}),
    ]
    for message, changed in changes:
        with pytest.raises(ValueError, match=message):
            replace(right, **changed)
    with pytest.raises(ValueError, match=r"bias must be bfloat16 or float32 \[4\]"):
        op.route(torch.zeros(2, 4), 2, torch.zeros(3))
    for progress in (torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"progress must be int32 \[2, 2\]"):
            op.route(torch.zeros(2, 4), 2, progress=progress)
        with pytest.raises(ValueError, match=r"progress must be int32 \[2, 2\]"):
            op.expert_rows(x, experts, layer.part(0, 2), progress=progress)
    for logits, top_k in ((torch.zeros(2, 4), 5), (torch.zeros(2, 4).half(), 2), (torch.zeros(4, 2).T, 2)):
        with pytest.raises(ValueError):
            op.route(logits, top_k)
