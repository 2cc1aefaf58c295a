"""MXFP4 as training sees it: weights rounded to what the packed checkpoint will hold, gradients passed straight on.

A block of 32 values along the last dimension shares a power of two; each value is one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and
a sign (OCP Microscaling Formats 1.0: e2m1 elements, E8M0 scales).
"""

import torch
from torch import Tensor

BLOCK = 32
EXPONENT_BIAS = 127
# Boundaries halfway between neighbouring magnitudes.
_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def _nearest(scaled: Tensor) -> Tensor:
    """The nearest magnitude with the sign of `scaled`; beyond 6 is 6."""
    size = scaled.abs()
    # Steps of 0.5 below 2, of 1 below 4, of 2 above: exact in fp32.
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.clamp(torch.round(size / step) * step, max=6.0) * scaled.sign()


def _candidate(blocks: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.exp2(exponent)
    rounded = _nearest(blocks / scale) * scale
    return rounded, (rounded - blocks).square().sum(-1, keepdim=True)


def _exponents(blocks: Tensor) -> Tensor:
    """For each block the better of two exponents: the one that clips nothing, and the one below it."""
    largest = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-20)
    high = torch.ceil(torch.log2(largest / 6))
    low = high - 1
    _, high_error = _candidate(blocks, high)
    _, low_error = _candidate(blocks, low)
    return torch.where(low_error < high_error, low, high)


def rounded(weight: Tensor) -> Tensor:
    """`weight` [..., n * 32] rounded to MXFP4, in its own dtype."""
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    return _candidate(blocks, _exponents(blocks))[0].flatten(-2).to(weight.dtype)


def straight_through(weight: Tensor, blend: Tensor) -> Tensor:
    """weight + blend * (rounded - weight), with the gradient of the identity; blend is a scalar tensor in [0, 1]."""
    return weight + blend * (rounded(weight.detach()) - weight.detach())


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [..., out, n * 32] as (blocks uint8 [..., out, n, 16], scales uint8 [..., out, n]), low nibble first."""
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    exponents = _exponents(blocks)
    values = _nearest(blocks / torch.exp2(exponents))
    codes = torch.bucketize(values.abs(), torch.tensor(_BOUNDS)) + 8 * (values < 0)
    nibbles = codes.to(torch.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4), (exponents.squeeze(-1) + EXPONENT_BIAS).to(torch.uint8)
