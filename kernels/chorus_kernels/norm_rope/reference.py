"""RMSNorm and rotary position embedding with YaRN scaling, as gpt-oss has them.

Sources: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); Su et al., "RoFormer" (2021); Peng et al.,
"YaRN: Efficient Context Window Extension of Large Language Models" (2023), section 3.
"""

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, in float32. x: [T, H]; weight: [H]; returns x's dtype [T, H]."""
    return torch.nn.functional.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def yarn_inverse_frequencies(
    head_dim: int,
    *,
    theta: float,
    factor: float,
    original_max_position: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = False,
) -> Tensor:
    """Angles per position of the head_dim / 2 rotated pairs: float32 [head_dim / 2].

    Pair i turns by f_i = theta^(-2i / head_dim) per position. Pairs with more than beta_fast turns over the original
    context keep f_i, those with fewer than beta_slow get f_i / factor, with a linear ramp over i between the two. The
    ramp's ends are whole numbers only with truncate (gpt-oss: without). factor 1 is plain RoPE.
    """

    def pair_with_turns(turns: float) -> float:
        return head_dim * math.log(original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with_turns(beta_fast), pair_with_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return (1.0 / (factor * periods)) * ramp + (1.0 / periods) * (1 - ramp)


def yarn_concentration(factor: float) -> float:
    """YaRN's attention scaling, 0.1 ln(factor) + 1: it multiplies cosines and sines, hence queries and keys both."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_tables(positions: Tensor, inverse_frequencies: Tensor, concentration: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for `apply_rope`.

    positions: int64 [T]; inverse_frequencies: float32 [D / 2]; returns two float32 [T, 1, D]: (cos, cos) and
    (-sin, sin), times the concentration.
    """
    angles = positions.float().unsqueeze(-1) * inverse_frequencies  # [T, D / 2]
    cos, sin = angles.cos() * concentration, angles.sin() * concentration
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def apply_rope(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + D / 2): y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin.

    x: float32 [T, heads, D]; cos, signed_sin: float32 [T, 1, D] of `rope_tables`; returns float32 [T, heads, D].
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)
