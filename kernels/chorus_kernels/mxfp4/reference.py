"""MXFP4: 4-bit floats (e2m1) in blocks of 32 that share one power-of-two scale (E8M0).

    value[i] = e2m1(nibble[i]) * 2^(scale - 127)

Byte j of a block holds element 2j in its low nibble and element 2j + 1 in its high nibble; bit 3 of a nibble is the
sign. The sixteen e2m1 values are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Scale 255 is the format's NaN: each
element of such a block is NaN. Scales 0 to 254 are exact in float32 (scale 0 gives subnormal values), but for products
beyond float32's range, which overflow to infinity: scale 254 with 2 and more, scale 253 with 4 and more.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (FP4), 5.4.1 (E8M0) and 6.3 (conversion).
"""

import torch
from torch import Tensor

BLOCK_SIZE = 32
SCALE_NAN = 255

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = _MAGNITUDES + tuple(-value for value in _MAGNITUDES)
# The exponent of e2m1's largest value, 6 = 1.5 * 2^2.
_LARGEST_EXPONENT = 2


def unpack_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Expands MXFP4 blocks.

    blocks: uint8 [..., B, 16]; scales: uint8 [..., B]; returns dtype [..., B * 32]. Bit-exact in float32; in bfloat16
    exact too, as every product has at most two significant bits and bfloat16 has float32's exponents.

    Errors: ValueError for wrong shapes or dtypes.
    """
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise ValueError(f"blocks and scales must be uint8, not {blocks.dtype} and {scales.dtype}")
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != BLOCK_SIZE // 2:
        raise ValueError(
            f"blocks must be [..., B, 16] and scales [..., B], not {list(blocks.shape)}, {list(scales.shape)}"
        )
    # Both values of a byte as one 64-bit element: half as many look-ups.
    pairs = _byte_values(blocks.device).view(torch.int64).squeeze(-1).index_select(0, blocks.flatten().int())
    values = pairs.view(torch.float32).view(*scales.shape, BLOCK_SIZE)
    return values.mul_(scale_values(scales).unsqueeze(-1)).flatten(-2).to(dtype)


def pack_mxfp4(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises to MXFP4: float [..., K] to blocks uint8 [..., K / 32, 16] and scales uint8 [..., K / 32].

    The shared exponent is floor(log2(largest magnitude)) - 2, kept within E8M0's range; elements round to the nearest
    e2m1 value, ties to the even code, and saturate at 6. What `unpack_mxfp4` gives packs to the same values again.

    Errors: ValueError when K is no multiple of 32, or a weight is not finite.
    """
    if weights.shape[-1] % BLOCK_SIZE:
        raise ValueError(f"the last dimension must be a multiple of {BLOCK_SIZE}, not {weights.shape[-1]}")
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("weights must be finite")
    grouped = weights.to(torch.float64).unflatten(-1, (-1, BLOCK_SIZE))  # [..., B, 32]
    largest = grouped.abs().amax(-1)
    # frexp gives largest = mantissa * 2^exponent with mantissa in [0.5, 1): floor(log2) is exponent - 1.
    exponent = torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT
    exponent = torch.where(largest > 0, exponent, -127).clamp(-127, 127)
    codes = _nearest_code(torch.ldexp(grouped, -exponent.unsqueeze(-1)))
    low, high = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4), (exponent + 127).to(torch.uint8)


def scale_values(scales: Tensor) -> Tensor:
    """E8M0 scales, uint8 of any shape, as float32 powers of two: 2^(s - 127); NaN for 255."""
    table = torch.arange(256, dtype=torch.int32, device=scales.device) << 23
    table[0] = 1 << 22  # 2^-127 is subnormal
    table[SCALE_NAN] = 0x7FC00000
    return table.view(torch.float32)[scales.int()]


def _byte_values(device: torch.device) -> Tensor:
    """The two e2m1 values of each byte, low nibble first: float32 [256, 2]."""
    values = torch.tensor(E2M1_VALUES, dtype=torch.float32, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((values[byte & 15], values[byte >> 4]), -1)


def _nearest_code(values: Tensor) -> Tensor:
    """The e2m1 codes, uint8, nearest to float64 values; a tie goes to the even code."""
    magnitudes = torch.tensor(_MAGNITUDES, dtype=torch.float64, device=values.device)
    midpoints = (magnitudes[1:] + magnitudes[:-1]) / 2
    # bucketize counts the midpoints below a value. Above an odd code the tie belongs to the next code, which is even.
    zero = torch.zeros((), dtype=torch.float64, device=values.device)
    midpoints[1::2] = torch.nextafter(midpoints[1::2], zero)
    codes = torch.bucketize(values.abs(), midpoints).to(torch.uint8)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)
