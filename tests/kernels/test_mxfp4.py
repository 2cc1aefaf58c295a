"""MXFP4 against the format's definition, at zero tolerance."""

import math
import struct

import pytest
import torch

from chorus_kernels.mxfp4 import E2M1_VALUES, pack_mxfp4, scale_values, unpack_mxfp4

ALL_PAIRS = torch.arange(256, dtype=torch.uint8).view(16, 16)  # every pair of nibbles, in sixteen blocks


def e2m1(nibble: int) -> float:
    """The value by its bits: sign, two bits of exponent with bias 1, one bit of mantissa."""
    exponent, mantissa = (nibble >> 1) & 3, nibble & 1
    magnitude = mantissa * 0.5 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa * 0.5)
    return math.copysign(magnitude, -1.0 if nibble & 8 else 1.0)


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.view(torch.int32), expected.view(torch.int32))


def as_float32(value: float) -> float:
    """float32's nearest value; struct refuses what overflows."""
    return value if abs(value) <= 3.4028235677973366e38 else math.copysign(math.inf, value)


def test_nibbles_have_their_values() -> None:
    assert [(value, math.copysign(1, value)) for value in E2M1_VALUES] == [
        (e2m1(n), math.copysign(1, e2m1(n))) for n in range(16)
    ]


@pytest.mark.parametrize("scale", range(255))
def test_every_byte_at_every_scale(scale: int) -> None:
    unpacked = unpack_mxfp4(ALL_PAIRS, torch.full((16,), scale, dtype=torch.uint8))
    expected = [
        as_float32(e2m1(nibble) * 2.0 ** (scale - 127)) for byte in range(256) for nibble in (byte & 15, byte >> 4)
    ]
    assert unpacked.shape == (16 * 32,)
    assert same_bits(unpacked, torch.tensor(struct.unpack("512f", struct.pack("512f", *expected))))


def test_scale_255_is_not_a_number() -> None:
    scales = torch.tensor([127, 255], dtype=torch.uint8)
    unpacked = unpack_mxfp4(torch.zeros(2, 16, dtype=torch.uint8), scales)
    assert torch.equal(unpacked.isnan(), torch.arange(64) >= 32)
    assert scale_values(scales)[0] == 1.0


def test_bfloat16_is_exact_too() -> None:
    for scale in (0, 1, 100, 127, 252):
        scales = torch.full((16,), scale, dtype=torch.uint8)
        assert torch.equal(unpack_mxfp4(ALL_PAIRS, scales, torch.bfloat16).float(), unpack_mxfp4(ALL_PAIRS, scales))


def test_shapes_keep_their_leading_dimensions() -> None:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 5, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 5, 2), generator=generator, dtype=torch.uint8)
    whole = unpack_mxfp4(blocks, scales)
    assert whole.shape == (3, 5, 64)
    assert torch.equal(whole[2, 4, 32:], unpack_mxfp4(blocks[2, 4, 1:], scales[2, 4, 1:]))
    assert unpack_mxfp4(blocks[:0], scales[:0]).shape == (0, 5, 64)


def test_unpack_refuses_wrong_shapes_and_dtypes() -> None:
    blocks, scales = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\[\.\.\., B, 16\]"):
        unpack_mxfp4(blocks[:, :15], scales)
    with pytest.raises(ValueError, match=r"\[2, 16\], \[1\]"):
        unpack_mxfp4(blocks, scales[:1])
    with pytest.raises(ValueError, match="uint8"):
        unpack_mxfp4(blocks.int(), scales)


@pytest.mark.parametrize("scale", range(2, 253))
def test_what_was_unpacked_packs_to_the_same_values(scale: int) -> None:
    unpacked = unpack_mxfp4(ALL_PAIRS, torch.full((16,), scale, dtype=torch.uint8))
    assert same_bits(unpack_mxfp4(*pack_mxfp4(unpacked)), unpacked)


def test_rounding_goes_to_the_nearest_and_ties_to_even() -> None:
    # 4 fixes the block's scale at 1. Then values, and what each must become.
    cases = {
        0.25: 0.0, 0.26: 0.5, 0.75: 1.0, 0.74: 0.5, 1.25: 1.0, 1.26: 1.5, 1.75: 2.0, 1.74: 1.5,
        2.5: 2.0, 2.51: 3.0, 3.5: 4.0, 3.49: 3.0, 5.0: 4.0, 5.01: 6.0, 7.9: 6.0, -2.5: -2.0, -7.0: -6.0,
    }  # fmt: skip
    weights = torch.tensor([4.0, *cases] + [0.0] * (31 - len(cases)))
    blocks, scales = pack_mxfp4(weights)
    assert scales.tolist() == [127]
    assert unpack_mxfp4(blocks, scales)[1 : 1 + len(cases)].tolist() == list(cases.values())


def test_packing_is_never_further_off_than_half_a_step() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(7, 96, generator=generator)
    blocks, scales = pack_mxfp4(weights)
    assert blocks.shape == (7, 3, 16) and scales.shape == (7, 3)
    unit = scale_values(scales).repeat_interleave(32, -1)
    error = (unpack_mxfp4(blocks, scales) - weights).abs() / unit
    # Steps between values: 1/2 below 2, 1 below 4, 2 below 6; saturation takes up to 2 off what lies between 6 and 8.
    size = weights.abs() / unit
    bound = torch.where(size < 2, 0.25, torch.where(size < 4, 0.5, torch.where(size <= 6, 1.0, size - 6)))
    assert bool((error <= bound + 1e-6).all())


def test_packing_zeros_and_refusals() -> None:
    blocks, scales = pack_mxfp4(torch.zeros(2, 32))
    assert not blocks.any() and not scales.any()
    with pytest.raises(ValueError, match="multiple of 32"):
        pack_mxfp4(torch.zeros(2, 33))
    with pytest.raises(ValueError, match="finite"):
        pack_mxfp4(torch.tensor([math.nan] * 32))
