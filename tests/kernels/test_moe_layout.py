"""The experts' layout: where each nibble and scale goes, and that nothing is lost."""

import pytest
import torch
from torch import Tensor

from chorus_kernels.moe.layout import PackedExperts, empty_experts, pack_expert, pack_experts, unpack_expert
from chorus_kernels.mxfp4 import unpack_mxfp4


def random_matrices(*shape: int, scales: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """blocks and scales of shape [E, N, K]."""
    experts, rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(*scales, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("shape", "scales", "unit"),
    [((2, 24, 96), (0, 128), 1.0), ((1, 50, 64), (0, 129), 1.0), ((2, 16, 288), (120, 141), 4096.0)],
)
def test_packing_loses_nothing(shape: tuple[int, int, int], scales: tuple[int, int], unit: float) -> None:
    blocks, exponents = random_matrices(*shape, scales=scales)
    exponents[:, 0, 0] = scales[1] - 1
    packed = pack_experts(blocks, exponents)
    assert packed.units.tolist() == [unit] * shape[0]
    for expert in range(shape[0]):
        assert torch.equal(unpack_expert(packed, expert), unpack_mxfp4(blocks[expert], exponents[expert]))


def test_every_nibble_at_every_scale_but_the_last() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).repeat(255, 1).view(255, 16, 1, 16)
    exponents = torch.arange(255, dtype=torch.uint8).view(255, 1, 1).expand(255, 16, 1).contiguous()
    packed = pack_experts(blocks, exponents)
    unpacked = torch.stack([unpack_expert(packed, expert) for expert in range(255)])
    assert torch.equal(unpacked, unpack_mxfp4(blocks, exponents))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 0), (17, 0), (30, 95), (5, 44), (22, 71)])
def test_a_nibble_is_where_the_layout_says(row: int, column: int) -> None:
    code = 0b1101  # the sign, the upper exponent bit and the mantissa
    blocks = torch.zeros(1, 32, 3, 16, dtype=torch.uint8)
    blocks[0, row, column // 32, column % 32 // 2] = code << (4 * (column % 2))
    packed = pack_experts(blocks, torch.full((1, 32, 3), 127, dtype=torch.uint8))
    g, half = row % 16 // 2, row % 2
    j, t = 2 * (column % 64 // 32) + column % 8 // 4, column % 32 // 8
    upper, p = column % 4 // 2, column % 2
    at = (0, row // 16, column // 64, 16 * g + 4 * t + j)
    bits = {(0, 0): (15, 8, 6), (1, 0): (12, 5, 3), (0, 1): (9, 2, 0), (1, 1): (14, 13, 11)}[half, upper]
    expected = sum(1 << (bit + 16 * p) for bit in bits)
    assert packed.words[at].item() & 0xFFFFFFFF == expected
    assert int((packed.words != 0).sum()) == 1


def test_scales_are_where_the_layout_says_and_padding_is_zero() -> None:
    blocks, exponents = random_matrices(1, 20, 288, scales=(1, 129))
    packed = pack_experts(blocks, exponents)
    assert packed.words.shape == (1, 2, 5, 128) and packed.scales.shape == (1, 2, 2, 8, 4)
    found = torch.zeros(32, 16, dtype=torch.int64)
    for row in range(32):
        for block in range(16):
            word = int(packed.scales[0, row // 16, block // 8, row % 16 // 2, block // 2 % 4])
            found[row, block] = word >> (8 * (row % 2 + 2 * (block % 2))) & 0xFF
    excess = max(int(exponents.max()) - 128, 0)
    assert torch.equal(found[:20, :9], exponents[0].long() + 126 - excess)
    found[:20, :9] = 0
    assert not found.any()


def test_an_expert_is_filled_alone() -> None:
    blocks, exponents = random_matrices(3, 18, 32, scales=(100, 130))
    packed = empty_experts(3, 18, 32)
    packed.words.fill_(-1), packed.scales.fill_(-1), packed.units.fill_(torch.nan)
    pack_expert(packed, 1, blocks[1], exponents[1])
    assert torch.equal(unpack_expert(packed, 1), unpack_mxfp4(blocks[1], exponents[1]))
    for tensor in (packed.words, packed.scales):
        assert bool((tensor[[0, 2]] == -1).all())
    assert packed.units.isnan().tolist() == [True, False, True]
    assert isinstance(packed, PackedExperts) and packed.num_experts == 3
    assert packed.num_bytes == 3 * (2 * 512 + 2 * 128 + 4)


def test_refusals() -> None:
    blocks, exponents = random_matrices(2, 16, 64, scales=(100, 130))
    with pytest.raises(ValueError, match="multiple of 32"):
        empty_experts(1, 16, 40)
    with pytest.raises(ValueError, match="uint8"):
        pack_experts(blocks.int(), exponents)
    with pytest.raises(ValueError, match=r"\[E, N, K / 32\]"):
        pack_experts(blocks, exponents[:1])
    with pytest.raises(ValueError, match=r"scales \[16, 2\]"):
        pack_experts(blocks, exponents[:, :, :1])
    exponents[1, 3, 1] = 255
    with pytest.raises(ValueError, match="expert 1 has a scale of 255"):
        pack_experts(blocks, exponents)
