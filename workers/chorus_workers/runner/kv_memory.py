"""The reference runner's KV memory: pages for full-attention layers, rings for window layers.

Every layer has one tensor [Hkv, rows, 2 D], keys before values. Row 0 is all zeros and is never written: gathers start
with it, for the sink, and are padded with it. Then come the pages' positions, or the slots' rings of `window` rows and,
alike, the snapshots. Rows are gathered one by one, so that nothing is read that its own request didn't write.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from chorus_workers.model.config import ModelConfig
from chorus_workers.model.weights import Shard
from chorus_workers.runner.base import RunnerInfo


class KVMemory:
    """Preallocated KV of one shard, float32. The operating system commits a page when it is first written."""

    def __init__(self, config: ModelConfig, shard: Shard, info: RunnerInfo) -> None:
        self.block_size = info.block_size
        self.window = config.window
        self._num_slots = info.num_slots
        num_heads = config.num_kv_heads // shard.size
        num_rings = info.num_slots + info.num_snapshots
        rows = {True: 1 + num_rings * config.window, False: 1 + info.num_blocks * info.block_size}
        self.layers = tuple(
            torch.empty(num_heads, rows[window is not None], 2 * config.head_dim) for window in config.windows
        )
        for memory in self.layers:
            memory[:, 0] = 0
        self._windowed = [memory for memory, window in zip(self.layers, config.windows, strict=True) if window]

    def page_row(self, block_table: Sequence[int], position: int) -> int:
        """The row of a position in pages."""
        block, offset = divmod(position, self.block_size)
        return 1 + block_table[block] * self.block_size + offset

    def ring_row(self, slot: int, position: int) -> int:
        """The row of a position in a slot's ring."""
        return 1 + slot * self.window + position % self.window

    def snapshot_slot(self, snapshot: int) -> int:
        """A snapshot as a slot, whose ring it is: a position has the same row in both."""
        return self._num_slots + snapshot

    def copy_ring(self, source: int, target: int) -> None:
        """Copies the ring of a slot to another one."""
        first, other, size = self.ring_row(source, 0), self.ring_row(target, 0), self.window
        for memory in self._windowed:
            memory[:, other : other + size] = memory[:, first : first + size]


def kv_bytes_per_token(config: ModelConfig, shard: Shard, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that one position takes in the pages of all full-attention layers of a shard."""
    num_layers = sum(window is None for window in config.windows)
    return num_layers * config.num_kv_heads // shard.size * 2 * config.head_dim * dtype.itemsize


def ring_bytes(config: ModelConfig, shard: Shard, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that the ring of one slot, or one snapshot, takes in all window layers of a shard."""
    num_layers = sum(window is not None for window in config.windows)
    return num_layers * config.window * config.num_kv_heads // shard.size * 2 * config.head_dim * dtype.itemsize


def kv_bytes(config: ModelConfig, info: RunnerInfo, dtype: torch.dtype) -> int:
    """Bytes that all KV of a model in one piece takes: pages, rings and snapshots."""
    pages = info.num_blocks * info.block_size * kv_bytes_per_token(config, Shard(), dtype)
    return pages + (info.num_slots + info.num_snapshots) * ring_bytes(config, Shard(), dtype)


def gather(memory: Tensor, rows: Tensor) -> Tensor:
    """Rows of one layer's memory: int64 [S, 1 + L] to [Hkv, S, 1 + L, 2 D]."""
    return memory.index_select(1, rows.flatten()).view(memory.shape[0], *rows.shape, memory.shape[2])
