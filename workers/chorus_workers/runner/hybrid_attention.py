"""Attention of one step over paged and ring KV memory, as the step's plan says."""

import torch
from torch import Tensor

from chorus_kernels.attention import batched_attention
from chorus_workers.model.config import ModelConfig
from chorus_workers.runner.kv_memory import KVMemory, gather
from chorus_workers.runner.step_plan import DecodeGroup, PrefillChunk, StepPlan, Tile


class HybridAttention:
    """The transformer's `Attention` for one step."""

    def __init__(self, config: ModelConfig, memory: KVMemory, plan: StepPlan) -> None:
        self._windowed = tuple(window is not None for window in config.windows)
        self._memory, self._plan = memory, plan

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        memory, plan, windowed = self._memory.layers[layer], self._plan, self._windowed[layer]
        kv = torch.cat((k, v), -1).transpose(0, 1)  # [Hkv, T, 2 D]
        out = torch.empty_like(q)
        if not windowed:
            memory.index_copy_(1, plan.page_writes, kv)
        for chunk in plan.prefill:
            _prefill(chunk, memory, windowed, q[chunk.tokens], kv[:, chunk.tokens], sinks, out[chunk.tokens])
        if windowed:
            # Only now: until here, prefill has read what the rings held before the step.
            fresh = kv if plan.ring_tokens is None else kv.index_select(1, plan.ring_tokens)
            memory.index_copy_(1, plan.ring_writes, fresh)
        for group in plan.decode:
            _decode(group, memory, windowed, q[group.tokens], sinks, out[group.tokens])
        return out.flatten(1)


def _decode(group: DecodeGroup, memory: Tensor, windowed: bool, q: Tensor, sinks: Tensor, out: Tensor) -> None:
    """One token of each sequence. q, out: [S, Hq, D]."""
    reads = group.ring if windowed else group.pages
    by_group = q.unflatten(1, (memory.shape[0], -1)).transpose(0, 1)  # [Hkv, S, G, D]
    attended = batched_attention(by_group, gather(memory, reads.rows), sinks, reads.mask)
    out.unflatten(1, (memory.shape[0], -1)).copy_(attended.transpose(0, 1))


def _prefill(
    chunk: PrefillChunk, memory: Tensor, windowed: bool, q: Tensor, fresh: Tensor, sinks: Tensor, out: Tensor
) -> None:
    """All tokens of a chunk. q, out: [T, Hq, D]; fresh: [Hkv, T, 2 D], the chunk's own KV."""
    if windowed:
        kv = torch.cat((gather(memory, chunk.ring_rows), fresh.unsqueeze(1)), 2)
    else:
        kv = gather(memory, chunk.page_rows)
    for tile in chunk.ring_tiles if windowed else chunk.page_tiles:
        _prefill_tile(tile, kv, q[tile.queries], sinks, out[tile.queries])


def _prefill_tile(tile: Tile, kv: Tensor, q: Tensor, sinks: Tensor, out: Tensor) -> None:
    """kv: [Hkv, 1, 1 + L, 2 D]; q, out: [T, Hq, D]."""
    num_kv_heads, num_queries = kv.shape[0], q.shape[0]
    seen = kv[:, :, 1 + tile.keys.start : 1 + tile.keys.stop]
    seen = torch.cat((kv[:, :, :1], seen), 2) if tile.keys.start else kv[:, :, : 1 + tile.keys.stop]
    by_group = q.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)  # [Hkv, G, T, D]
    attended = batched_attention(by_group.flatten(1, 2).unsqueeze(1), seen, sinks, tile.mask, num_queries)
    by_head = attended.view(num_kv_heads, -1, num_queries, q.shape[-1])
    out.unflatten(1, (num_kv_heads, -1)).copy_(by_head.permute(2, 0, 1, 3))
