"""Tile sizes of the attention kernels, from shapes alone; and the map of prefill tiles.

What a launch looks like never depends on device data, so that a CUDA graph holds for any lengths up to its maximum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Programs that fill an H100, three for each multiprocessor; and up to so many (sequence, KV head) more, with less to do
# for each.
_PROGRAMS, _MANY_PROGRAMS, _FEW_HEADS = 400, 640, 64
_MAX_SPLITS = 64
# Sequences times splits: bounds the scratch (66 floats per query head: 35 MB with gpt-oss's 64 heads).
_MAX_SPLIT_SEQUENCES = 2048
# A longer split makes one long sequence the last to finish.
_LONGEST_SPLIT = 8192

PREFILL_ROWS = 128
PREFILL_KEYS = 64
PREFILL_WARPS = 8
# Two programs on each multiprocessor.
PREFILL_REGISTERS = 128


def prefill_stages(window: int | None) -> int:
    """Two more where a tile's blocks are looked up."""
    return 5 if window is None else 3


# The most parts of a sequence's keys when these may depend on its own length alone.
_INVARIANT_SPLITS = 16


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How decode attention divides its keys. Sums are made in the order that these say: with the same tiles, a
    sequence's result is the same bits alone and in a batch."""

    num_splits: int
    # Keys that are worth a split of their own; shorter sequences use fewer splits.
    split_min: int
    block_keys: int
    num_warps: int = 4
    # The lookup of a tile's blocks takes two; of these five, two tiles of keys and values are on their way at a time.
    num_stages: int = 5

    def scratch_size(self, num_sequences: int, num_heads: int, head_dim: int) -> int:
        """Floats that the splits hand to the kernel that combines them."""
        return 0 if self.num_splits == 1 else num_sequences * num_heads * self.num_splits * (head_dim + 2)


def decode_tiles(num_sequences: int, num_kv_heads: int, max_length: int, *, ring: bool) -> DecodeTiles:
    """Splits enough to fill the GPU, and for few long sequences no straggler. A ring is never split."""
    if ring:
        return DecodeTiles(1, max_length, min(64, power_of_two(max_length)), num_stages=3)
    keys = 64
    heads = max(1, num_sequences * num_kv_heads)
    to_fill = _ceil(_MANY_PROGRAMS if heads <= _FEW_HEADS else _PROGRAMS, heads)
    wanted = max(to_fill, _ceil(max_length, _LONGEST_SPLIT))
    most = min(_MAX_SPLITS, _ceil(max_length, keys), max(1, _MAX_SPLIT_SEQUENCES // max(1, num_sequences)))
    return DecodeTiles(max(1, min(wanted, most)), keys if to_fill > 1 else 8 * keys, keys)


def invariant_decode_tiles() -> DecodeTiles:
    """For pages: the same whatever else is in the batch, so that a sequence's bits are its own. Each of its splits has
    128 keys, or more if it is longer than all of them."""
    return DecodeTiles(_INVARIANT_SPLITS, 128, 64)


def prefill_tiles(lengths: Sequence[int], starts: Sequence[int], group: int) -> Tensor:
    """The map that prefill attention walks, on the CPU.

    lengths, starts: each chunk's number of tokens and first position; group: query heads per KV head. Returns int32
    [N, 2], (chunk, first query), those with the most keys first, so that the last to finish are short. The kernel skips
    rows whose chunk is -1.
    """
    queries = PREFILL_ROWS // group
    tiles = [(chunk, first) for chunk, length in enumerate(lengths) for first in range(0, length, queries)]
    tiles.sort(key=lambda tile: -(starts[tile[0]] + tile[1]))
    return torch.tensor(tiles, dtype=torch.int32, device="cpu").view(-1, 2)


def power_of_two(size: int) -> int:
    """The least power of two that holds `size`, and that a matrix unit takes as a side (16)."""
    return max(16, 1 << (size - 1).bit_length())


def _ceil(size: int, unit: int) -> int:
    return -(-size // unit)
