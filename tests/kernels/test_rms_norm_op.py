"""RMSNorm's kernel against float64."""

import pytest
import torch
from torch import Tensor

from chorus_kernels.norm_rope.op import add_rms_norm, rms_norm

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
    out = torch.full((5, width), float("nan"), dtype=dtype, device=DEVICE)
    assert rms_norm(x, weight, EPS, out[1:4]).data_ptr() == out[1].data_ptr()
    assert_rounded(out[1:4], exact(x, weight))
    assert out[[0, 4]].isnan().all()
    assert torch.equal(rms_norm(x, weight, EPS), out[1:4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual_dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
    x, residual = normal(2, 45, seed=2, dtype=dtype), normal(2, 45, seed=3, dtype=residual_dtype)
    weight, before = normal(45, seed=4, dtype=torch.bfloat16), residual.clone()
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, (x.float() + residual.float()).to(residual_dtype)) and torch.equal(residual, before)
    assert normed.dtype == dtype
    assert_rounded(normed, exact(total, weight))
    # The same bits as when the sum was made elsewhere.
    if dtype == residual_dtype:
        assert torch.equal(normed, rms_norm(total, weight, EPS))


def test_no_rows() -> None:
    x, weight = normal(0, 6, seed=5, dtype=torch.bfloat16), normal(6, seed=6, dtype=torch.bfloat16)
    assert rms_norm(x, weight, EPS).shape == (0, 6)
    assert [part.shape for part in add_rms_norm(x, x.float(), weight, EPS)] == [(0, 6), (0, 6)]


def test_what_does_not_fit_is_refused() -> None:
    x, weight = normal(3, 6, seed=7, dtype=torch.bfloat16), normal(6, seed=8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"weight must be \[6\]"):
        rms_norm(x, weight[:5], EPS)
    with pytest.raises(ValueError, match="out must be"):
        rms_norm(x, weight, EPS, torch.empty_like(x)[:2])
    with pytest.raises(ValueError, match="x must be contiguous"):
        rms_norm(x.half(), weight, EPS)
    with pytest.raises(ValueError, match="residual must be contiguous"):
        add_rms_norm(x, torch.empty(6, 3, dtype=torch.bfloat16, device=DEVICE).t(), weight, EPS)
