"""The Triton runner's KV memory: pages for full-attention layers, rings for window layers.

Every layer has one tensor [2, blocks, Hkv, rows, D], keys before values. A full-attention layer's blocks are pages of
`block_size` positions. A window layer's block is a slot's ring, with position p in row p % window; to the kernels it is
a block table of one entry, the slot. Behind the slots' rings lie the snapshots', as slots of higher numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chorus_workers.model.config import ModelConfig
from chorus_workers.model.weights import Shard
from chorus_workers.runner.base import RunnerInfo

Rows = NDArray[np.int32]


def copyable(x: Tensor) -> Tensor:
    """x as PyTorch copies rows of it: not everything that copies knows float8."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


class DeviceKVMemory:
    """Preallocated KV of one shard."""

    def __init__(
        self, config: ModelConfig, shard: Shard, info: RunnerInfo, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size, self.window = info.block_size, config.window
        self._num_slots = info.num_slots
        num_heads = config.num_kv_heads // shard.size
        num_rings = info.num_slots + info.num_snapshots
        sizes = {True: (num_rings, config.window), False: (info.num_blocks, info.block_size)}
        self.layers = tuple(
            torch.empty(2, blocks, num_heads, rows, config.head_dim, dtype=dtype, device=device)
            for blocks, rows in (sizes[window is not None] for window in config.windows)
        )
        self._rings = [copyable(memory) for memory, window in zip(self.layers, config.windows, strict=True) if window]

    def page_rows(self, block_table: Sequence[int], positions: Rows) -> Rows:
        """Where positions of a sequence lie among all rows of the pages."""
        blocks = np.asarray(block_table, np.int32)[positions // self.block_size]
        return blocks * np.int32(self.block_size) + positions % self.block_size

    def ring_rows(self, slot: int, positions: Rows) -> Rows:
        """Where positions lie among all rows of the rings."""
        return np.int32(slot * self.window) + positions % max(self.window, 1)

    def snapshot_slot(self, snapshot: int) -> int:
        """A snapshot as a slot, whose ring it is: a position has the same row in both."""
        return self._num_slots + snapshot

    def copy_rings(self, sources: Tensor, targets: Tensor) -> None:
        """Copies rings of slots to others, in all window layers; int32 [n] each."""
        for memory in self._rings:
            memory.index_copy_(1, targets.long(), memory.index_select(1, sources))
