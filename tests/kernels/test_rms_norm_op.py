"""RMSNorm's kernel against float64."""

import pytest
import torch
from torch import Tensor

from chorus_kernels.norm_rope.op import norm_linear, rms_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float32]
EPS = 1e-5


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(DEVICE, dtype)


def exact(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def assert_rounded(actual: Tensor, expected: Tensor) -> None:
    """Float32 work on a sum of up to a few thousand squares is good to some 2^-20; then one rounding to the dtype: at
    most half a step of 2^-7 (bfloat16), and in the mean square a step over sqrt(12), times a mantissa of up to 2."""
    error = ((actual.double() - expected) / expected).abs()
    largest = 2.0**-8 * 1.01 if actual.dtype == torch.bfloat16 else 2.0**-19
    assert not actual.isnan().any()
    assert float(error.max()) <= largest
    assert float(error.square().mean().sqrt()) <= largest / 1.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "weight_dtype"), [(1, torch.float32), (7, torch.bfloat16), (2880, torch.bfloat16)])
def test_rms_norm(dtype: torch.dtype, weight_dtype: torch.dtype, width: int) -> None:
    x, weight = normal(3, width, seed=0, dtype=dtype), normal(width, seed=1, dtype=weight_dtype)
    x[1] *= 1e-3  # where eps counts
    assert_rounded(rms_norm(x, weight, EPS), exact(x, weight))


@pytest.mark.parametrize(("num_tokens", "num_rows", "width"), [(1, 32, 2880), (3, 7, 45), (5, 1, 64)])
def test_norm_linear(num_tokens: int, num_rows: int, width: int) -> None:
    x, norm = normal(num_tokens, width, seed=2, dtype=torch.bfloat16), normal(width, seed=3, dtype=torch.float32)
    weight = normal(num_rows, width, seed=4, dtype=torch.bfloat16)
    bias = normal(num_rows, seed=5, dtype=torch.bfloat16)
    scaled, y = norm_linear(x, norm, EPS, weight, bias, 2.0**64)
    normed = scaled.double() * 2.0**-64
    assert torch.equal(normed, rms_norm(x, norm, EPS).double())
    products = normed[:, None, :] * weight.double()
    error = (y.double() - products.sum(-1) - bias.double()).abs()
    # Float32 sums: some 2^-24 of what is added, for each of a dozen levels.
    assert y.dtype == torch.float32 and bool((error <= 12 * 2.0**-24 * (products.abs().sum(-1) + 1)).all())
    alone = norm_linear(x[:1], norm, EPS, weight, bias)
    assert torch.equal(alone[0], (normed[:1]).bfloat16()) and torch.equal(alone[1], y[:1])


def test_no_rows() -> None:
    x, weight = normal(0, 6, seed=5, dtype=torch.bfloat16), normal(6, seed=6, dtype=torch.bfloat16)
    assert rms_norm(x, weight, EPS).shape == (0, 6)
    matrix, bias = normal(2, 6, seed=7, dtype=torch.bfloat16), normal(2, seed=8, dtype=torch.bfloat16)
    assert [part.shape for part in norm_linear(x, weight, EPS, matrix, bias)] == [(0, 6), (0, 2)]


def test_what_does_not_fit_is_refused() -> None:
    x, weight = normal(3, 6, seed=7, dtype=torch.bfloat16), normal(6, seed=8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"weight must be \[6\]"):
        rms_norm(x, weight[:5], EPS)
    with pytest.raises(ValueError, match="x must be contiguous"):
        rms_norm(x.half(), weight, EPS)
    matrix, bias = normal(2, 6, seed=9, dtype=torch.bfloat16), normal(2, seed=10, dtype=torch.bfloat16)
    for message, arguments in (
        ("must have one dtype", (x.float(), weight, EPS, matrix, bias)),
        (r"weight must be \[N, 6\]", (x, weight, EPS, matrix[:, :5], bias)),
        (r"bias must be \[2\]", (x, weight, EPS, matrix, bias[:1])),
        ("weight must be contiguous", (x, weight, EPS, matrix.repeat(1, 2)[:, ::2], bias)),
    ):
        with pytest.raises(ValueError, match=message):
            norm_linear(*arguments)
