"""The dense product for few tokens against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from chorus_kernels.linear.layout import tiled
from chorus_kernels.linear.op import MAX_TILED_TOKENS, MAX_TOKENS, MAX_VECTOR_TOKENS, linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def between_nan(tensor: Tensor) -> Tensor:
    """The same values in memory that holds NaN before and behind them."""
    memory = torch.full((tensor.numel() + 64,), float("nan"), dtype=tensor.dtype, device=DEVICE)
    return memory[32:-32].view(tensor.shape).copy_(tensor)


def exact(x: Tensor, weight: Tensor, *addends: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().t()
    return sum((addend.double() for addend in addends if addend is not None), y)


def assert_close(actual: Tensor, expected: Tensor, depth: int, rounded_before: float = 0.0) -> None:
    """Sums of K products near 1. Tensor cores add 16 at a time to a running sum, in eight chains, and cut off what is
    below 2^-23 of it: K / 128 times that of a sum of some K^(1/2), times 3 for the largest of them, and a few more
    where chains meet. bfloat16 adds a rounding of up to 2^-8 of the result (and of what was rounded before), in the
    mean square of 1/sqrt(3) of that; few values are tested, so 0.7."""
    assert not actual.isnan().any()
    error = (actual.double() - expected).abs()
    in_sum = 3 * (depth / 128 + 4) * depth**0.5 * 2.0**-23
    step = 2.0**-8 if actual.dtype == torch.bfloat16 else 2.0**-24
    assert bool((error <= in_sum + step * (expected.abs() + rounded_before)).all())
    scale = float(expected.square().mean().sqrt()) + rounded_before
    assert float(error.square().mean().sqrt()) <= 0.7 * (in_sum + step * scale)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def full_of_nan(*args: Any, **kwargs: Any) -> Tensor:
        return empty(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", full_of_nan)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "depth"), [(1, 5, 2880), (2, 7, 1030), (3, 11, 13), (16, 8, 1024), (9, 19, 1040)]
)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_few_tokens(num_tokens: int, num_rows: int, depth: int, out_dtype: torch.dtype) -> None:
    x, weight = between_nan(normal(num_tokens, depth, seed=0)), between_nan(normal(num_rows, depth, seed=1))
    bias = between_nan(normal(num_rows, seed=2))
    residual = between_nan(normal(num_tokens, num_rows, seed=3, dtype=torch.float32))
    y = linear(x, weight, bias, residual, out_dtype)
    assert y.dtype == out_dtype
    assert_close(y, exact(x, weight, bias, residual), depth)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "depth"), [(3, 11, 13), (8, 8, 1024), (5, 19, 1040), (MAX_TILED_TOKENS + 1, 6, 70)]
)
def test_tiles_of_the_weight_give_the_same_bits(num_tokens: int, num_rows: int, depth: int) -> None:
    x, weight = between_nan(normal(num_tokens, depth, seed=0)), normal(num_rows, depth, seed=1)
    bias, residual = between_nan(normal(num_rows, seed=2)), between_nan(normal(num_tokens, num_rows, seed=3))
    tiles = between_nan(tiled(weight))
    y = linear(x, weight, bias, residual, tiles=tiles, hold_next=True)
    assert torch.equal(y, linear(x, weight, bias, residual))
    # And it is these that are read, where they are faster to read.
    doubled = linear(x, weight, None, None, torch.float32, tiles=2 * tiles)
    factor = 2 if num_tokens <= MAX_TILED_TOKENS else 1
    assert torch.equal(doubled, factor * linear(x, weight, None, None, torch.float32))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("num_tokens", "depth", "eps"), [(1, 2880, 1e-5), (2, 70, 0.5)])
@pytest.mark.parametrize("norm_dtype", [torch.bfloat16, torch.float32])
def test_normed_tokens(num_tokens: int, depth: int, eps: float, norm_dtype: torch.dtype) -> None:
    x, weight = between_nan(normal(num_tokens, depth, seed=0) * 3), between_nan(normal(6, depth, seed=1))
    norm, bias = between_nan(normal(depth, seed=2, dtype=norm_dtype)), between_nan(normal(6, seed=3))
    y = linear(x, weight, bias, None, torch.float32, norm=(norm, eps))
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * norm.double()
    # The reciprocal root is good to 2^-22.
    expected = normed @ weight.double().t()
    assert_close(y, expected + bias.double(), depth, rounded_before=4 * float(expected.abs().max()))


@pytest.mark.parametrize("most", [MAX_VECTOR_TOKENS, MAX_TOKENS])
def test_a_token_has_the_same_bits_alone_and_among_others(most: int) -> None:
    x, weight, residual = normal(most, 1100, seed=6), normal(7, 1100, seed=7), normal(most, 7, seed=8)
    y = linear(x, weight, None, residual, torch.float32)
    for first, size in [(1, 1)] if most == MAX_VECTOR_TOKENS else [(3, 3), (1, 5)]:
        rows = slice(first, first + size)
        assert torch.equal(linear(x[rows], weight, None, residual[rows], torch.float32), y[rows])


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("addends", ["neither", "bias", "residual", "both"])
def test_many_tokens(out_dtype: torch.dtype, addends: str) -> None:
    x, weight = normal(MAX_TOKENS + 2, 70, seed=9), normal(11, 70, seed=10)
    bias = normal(11, seed=11) if addends in ("bias", "both") else None
    residual = normal(len(x), 11, seed=12, dtype=out_dtype) if addends in ("residual", "both") else None
    y = linear(x, weight, bias, residual, out_dtype)
    assert y.dtype == out_dtype
    rounded_before = 0.0 if residual is None else float(exact(x, weight, bias).abs().max())
    assert_close(y, exact(x, weight, bias, residual), 70, rounded_before)


@pytest.mark.parametrize(
    ("num_tokens", "bias"), [(1, True), (3, True), (MAX_TOKENS + 1, True), (MAX_TOKENS + 1, False)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_onto_the_residual(num_tokens: int, bias: bool, dtype: torch.dtype) -> None:
    x, weight = normal(num_tokens, 70, seed=13), normal(11, 70, seed=14)
    residual = normal(num_tokens, 11, seed=15, dtype=dtype)
    addend = normal(11, seed=16) if bias else None
    expected = exact(x, weight, addend, residual)
    before = float(exact(x, weight, addend).abs().max()) if bias and num_tokens > MAX_TOKENS else 0.0
    y = linear(x, weight, addend, residual, dtype, out=residual)
    assert y is residual
    assert_close(y, expected, 70, before)


def test_no_tokens() -> None:
    assert linear(normal(0, 6, seed=0), normal(4, 6, seed=1), normal(4, seed=2)).shape == (0, 4)


def test_what_does_not_fit_is_refused() -> None:
    x, weight = normal(3, 6, seed=0), normal(4, 6, seed=1)
    with pytest.raises(ValueError, match=r"x must be \[T, K\] and weight \[N, K\]"):
        linear(x, weight[:, :5])
    with pytest.raises(ValueError, match="x and weight must be bfloat16"):
        linear(x.float(), weight)
    with pytest.raises(ValueError, match=r"bias must be \[4\]"):
        linear(x, weight, normal(3, seed=2))
    with pytest.raises(ValueError, match=r"residual must be \[3, 4\]"):
        linear(x, weight, None, normal(4, 3, seed=2))
    with pytest.raises(ValueError, match="out_dtype"):
        linear(x, weight, None, None, torch.float16)
    with pytest.raises(ValueError, match="weight must be contiguous"):
        linear(x, normal(6, 4, seed=1).t())
    with pytest.raises(ValueError, match="2 tokens at most"):
        linear(x, weight, norm=(normal(6, seed=2), 1e-5))
    with pytest.raises(ValueError, match=r"the norm's weight must be \[6\]"):
        linear(x[:1], weight, norm=(normal(5, seed=2), 1e-5))
    with pytest.raises(ValueError, match="the norm's weight must be contiguous"):
        linear(x[:1], weight, norm=(normal(12, seed=2)[::2], 1e-5))
    with pytest.raises(ValueError, match=r"weight must be \[N, K\]"):
        tiled(weight[0])
    with pytest.raises(ValueError, match=r"tiles must be the weight's, \[1, 1, 8, 32\]"):
        linear(x, weight, tiles=tiled(normal(9, 6, seed=1)))
    with pytest.raises(ValueError, match="tiles must be the weight's"):
        linear(x, weight, tiles=tiled(weight).float())
    with pytest.raises(ValueError, match="tiles must be contiguous"):
        linear(x, weight, tiles=tiled(weight).repeat(1, 1, 1, 2)[..., ::2])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_tokens", "num_rows", "depth"), [(1, 5, 130), (17, 70, 64), (70, 7, 200), (129, 65, 72)])
def test_the_batch_invariant_product(num_tokens: int, num_rows: int, depth: int, out_dtype: torch.dtype) -> None:
    x, weight = between_nan(normal(num_tokens, depth, seed=0)), between_nan(normal(num_rows, depth, seed=1))
    bias, residual = between_nan(normal(num_rows, seed=2)), between_nan(normal(num_tokens, num_rows, seed=3))
    y = linear(x, weight, bias, residual, out_dtype, batch_invariant=True)
    # One chain of sums of 16 products, where others have eight.
    assert_close(y, exact(x, weight, bias, residual), 8 * depth)
    plain = linear(x, weight, out_dtype=out_dtype, batch_invariant=True)
    assert_close(plain, exact(x, weight), 8 * depth)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
@pytest.mark.parametrize(
    ("num_rows", "depth"), [(5120, 2880), (2880, 4096), (32, 2880), (201088, 2880), (300, 96), (300, 40)]
)
def test_a_token_has_the_same_bits_in_any_batch(num_rows: int, depth: int) -> None:
    x, weight = normal(1100, depth, seed=0), normal(num_rows, depth, seed=1)
    bias, residual = normal(num_rows, seed=2), normal(1100, num_rows, seed=3)
    expected = linear(x, weight, bias, residual, batch_invariant=True)
    for count in (1, 2, 3, 8, 16, 17, 32, 33, 64, 65, 200, 512, 513):
        y = linear(x[:count], weight, bias, residual[:count], batch_invariant=True)
        assert torch.equal(y, expected[:count]), count


def test_the_batch_invariant_product_takes_no_tiles_and_no_norm() -> None:
    x, weight = normal(2, 64, seed=0), normal(8, 64, seed=1)
    for extra in ({"tiles": tiled(weight)}, {"norm": (normal(64, seed=2), 1e-5)}):
        with pytest.raises(ValueError, match="takes no norm and no tiles"):
            linear(x, weight, batch_invariant=True, **extra)  # type: ignore[arg-type]
