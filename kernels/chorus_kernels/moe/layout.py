"""How the kernels keep MXFP4 matrices: in the order in which tensor cores take them.

A matrix [N, K] is cut into tiles of 16 rows and steps of 64 columns. A warp reads one tile and step as 512 contiguous
bytes: lane 4 g + t takes the four words j = 0 .. 3, and each word is that lane's part of one 16 x 16 operand of
mma.m16n8k16 or of wgmma. The eight nibbles of a word are named (half, upper, p), one bit each:

    row    = 16 tile + 2 g + half                         (neighbours, such as a gate and its up row, share a lane)
    column = 64 step + 32 (j // 2) + 8 t + 4 (j % 2) + 2 upper + p    (a lane's columns are 8 neighbours of a block)

Word by word the kernels need all nibbles' bits where bfloat16 has them: sign in bit 15, the two exponent bits and the
mantissa bit in 8 .. 6 of each half (p = 0 the lower half of the word). Register half + 2 upper is then

    0: w & M      1: w << 3 & M      2: w << 6 & M      M = 0x81C081C0
    3: w << 1 & 0x80008000  |  w >> 5 & 0x01400140  |  w >> 3 & 0x00800080

and holds the values times 2^-126, subnormal for 0.5, exactly. One bfloat16 multiplication by 2^(s - 127 + 126) makes
weights of them; `scales` keeps the exponents of those factors. A factor beyond bfloat16's range (s > 128: weights of 4
and more in size) takes its excess from `units`, a power of two for each expert that multiplies what its rows sum to.

Scales: byte half + 2 (j // 2) of a word holds that row's and block's exponent; the words of four steps lie together, so
that a lane reads them at once.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from chorus_kernels.mxfp4 import BLOCK_SIZE, SCALE_NAN

TILE_ROWS = 16
STEP_COLUMNS = 64
STEPS_PER_SCALE_LOAD = 4
# The largest scale byte whose factor 2^(s - 1) is finite in bfloat16.
_LARGEST_SCALE = 128
_EXPONENT_OFFSET = 126
# Where (sign, exponent high, exponent low, mantissa) of nibble half + 2 upper lie in its half of the word.
_BITS = ((15, 8, 7, 6), (12, 5, 4, 3), (9, 2, 1, 0), (14, 13, 10, 11))


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """E matrices [N, K] of one kind, with R = ceil(N / 16) tiles and S = ceil(K / 64) steps.

    words: int32 [E, R, S, 128], element 4 lane + j; rows and columns beyond N and K are zeros.
    scales: int32 [E, R, ceil(S / 4), 8, 4]: word (g, step % 4); four exponents each.
    units: float32 [E].
    """

    words: Tensor
    scales: Tensor
    units: Tensor
    num_rows: int
    num_columns: int

    @property
    def num_experts(self) -> int:
        return self.words.shape[0]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.words, self.scales, self.units))


def empty_experts(
    num_experts: int, num_rows: int, num_columns: int, device: torch.device | str | None = None
) -> PackedExperts:
    """Room for E matrices [N, K], to be filled by `pack_expert`. Errors: ValueError when K is no multiple of 32."""
    if num_columns % BLOCK_SIZE:
        raise ValueError(f"matrices must have a multiple of {BLOCK_SIZE} columns, not {num_columns}")
    tiles, steps = -(-num_rows // TILE_ROWS), -(-num_columns // STEP_COLUMNS)
    quads = -(-steps // STEPS_PER_SCALE_LOAD)
    return PackedExperts(
        torch.empty(num_experts, tiles, steps, 128, dtype=torch.int32, device=device),
        torch.empty(num_experts, tiles, quads, 8, STEPS_PER_SCALE_LOAD, dtype=torch.int32, device=device),
        torch.empty(num_experts, dtype=torch.float32, device=device),
        num_rows,
        num_columns,
    )


def pack_expert(packed: PackedExperts, expert: int, blocks: Tensor, scales: Tensor) -> None:
    """Fills one expert of `packed`: blocks uint8 [N, K / 32, 16], scales uint8 [N, K / 32], on its device. Works in
    about six times the matrix's bytes, and doesn't wait for the device: `check_scales` is for whoever has the scales.

    Errors: ValueError for other shapes or dtypes.
    """
    rows, columns = packed.num_rows, packed.num_columns
    shape = (rows, columns // BLOCK_SIZE)
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise ValueError(f"blocks and scales must be uint8, not {blocks.dtype} and {scales.dtype}")
    if blocks.shape != (*shape, BLOCK_SIZE // 2) or scales.shape != shape:
        raise ValueError(
            f"blocks must be {[*shape, BLOCK_SIZE // 2]} and scales {list(shape)}, "
            f"not {list(blocks.shape)} and {list(scales.shape)}"
        )
    tiles, steps = packed.words.shape[1:3]
    quads = packed.scales.shape[2]

    # A byte holds the two nibbles of p, the first in its lower half.
    pairs = _padded(blocks.flatten(1), tiles * TILE_ROWS, steps * STEP_COLUMNS // 2)
    pairs = pairs.view(tiles, 8, 2, steps, 2, 4, 2, 2)  # tile, g, half, step, block, t, j % 2, upper
    words = torch.zeros(tiles, 8, steps, 2, 4, 2, dtype=torch.int32, device=blocks.device)
    for register, places in enumerate(_places(blocks.device)):
        upper, half = divmod(register, 2)
        words |= places[pairs[:, :, half, ..., upper].int()]
    packed.words[expert] = words.permute(0, 2, 1, 4, 3, 5).reshape(tiles, steps, 128)

    excess = (scales.amax().int() - _LARGEST_SCALE).clamp(min=0) if scales.numel() else scales.new_zeros(()).int()
    exponents = (scales.int() + _EXPONENT_OFFSET - excess).to(torch.uint8)
    exponents = _padded(exponents, tiles * TILE_ROWS, quads * STEPS_PER_SCALE_LOAD * 2)
    exponents = exponents.view(tiles, 8, 2, quads, STEPS_PER_SCALE_LOAD, 2)  # tile, g, half, quad, step, block
    exponents = exponents.permute(0, 3, 1, 4, 5, 2).flatten()
    packed.scales[expert] = exponents.view(torch.int32).view(packed.scales.shape[1:])
    packed.units[expert] = torch.ldexp(torch.ones((), device=blocks.device), excess)


def check_scales(scales: Tensor) -> None:
    """Errors: ValueError, if an expert of uint8 [E, ...] has a scale of 255, which is no number. Waits for the
    device."""
    found = (scales == SCALE_NAN).flatten(1).any(1).nonzero()
    if len(found):
        raise ValueError(f"expert {int(found[0])} has a scale of {SCALE_NAN}, which is not a number")


def pack_experts(blocks: Tensor, scales: Tensor) -> PackedExperts:
    """The layout of blocks uint8 [E, N, K / 32, 16] and scales uint8 [E, N, K / 32], on their device.

    Errors: ValueError for other shapes or dtypes, and for a scale of 255, which is no number.
    """
    if blocks.ndim != 4 or scales.ndim != 3 or blocks.shape[0] != scales.shape[0]:
        raise ValueError(
            f"blocks must be [E, N, K / 32, 16] and scales [E, N, K / 32], "
            f"not {list(blocks.shape)} and {list(scales.shape)}"
        )
    check_scales(scales)
    packed = empty_experts(blocks.shape[0], blocks.shape[1], blocks.shape[2] * BLOCK_SIZE, blocks.device)
    for expert in range(blocks.shape[0]):
        pack_expert(packed, expert, blocks[expert], scales[expert])
    return packed


def unpack_expert(packed: PackedExperts, expert: int) -> Tensor:
    """One expert's matrix, float32 [N, K], by the layout's arithmetic as the kernels do it."""
    tiles, steps = packed.words.shape[1:3]
    words = packed.words[expert].view(tiles, steps, 8, 4, 2, 2)  # tile, step, g, t, block, j % 2
    mask = 0x81C081C0 - (1 << 32)
    registers = (
        words & mask,
        (words << 3) & mask,
        (words << 6) & mask,
        ((words << 1) & (0x80008000 - (1 << 32))) | ((words >> 5) & 0x01400140) | ((words >> 3) & 0x00800080),
    )
    pairs = torch.stack(registers, -1)
    values = torch.stack(((pairs << 16).view(torch.float32), (pairs & -65536).view(torch.float32)), -1)
    values = values.view(*words.shape, 2, 2, 2)  # ..., upper, half, p
    values = values.permute(0, 2, 7, 1, 4, 3, 5, 6, 8).reshape(tiles * TILE_ROWS, steps * 2, BLOCK_SIZE)
    bytes_ = packed.scales[expert].flatten().view(torch.uint8).view(tiles, -1, 8, STEPS_PER_SCALE_LOAD, 2, 2)
    exponents = bytes_.permute(0, 2, 5, 1, 3, 4).reshape(tiles * TILE_ROWS, -1)[:, : steps * 2]
    factors = (exponents.int() << 23).view(torch.float32)
    matrix = (values * factors.unsqueeze(-1)).flatten(1) * packed.units[expert]
    return matrix[: packed.num_rows, : packed.num_columns]


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0])).contiguous()


@functools.cache
def _places(device: torch.device) -> Tensor:
    """int32 [4, 256]: for each register, every byte with the bits of its nibbles moved to their places in a word."""
    codes = torch.arange(256, dtype=torch.int32)
    tables = torch.zeros(4, 256, dtype=torch.int32)
    for table, bits in zip(tables, _BITS, strict=True):
        for p in range(2):
            for position, bit in zip((3, 2, 1, 0), bits, strict=True):
                table |= ((codes >> (4 * p + position)) & 1) << (16 * p + bit)
    return tables.to(device)
