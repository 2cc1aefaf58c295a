"""Where each token of a step is written, and what each sequence reads: worked out once, used by every layer.

Tokens are laid out decode first, by context length, then prefill. Decode sequences attend in groups of like length,
padded; a prefill chunk attends alone, in tiles of queries. A window layer's chunk reads the ring as it was before the
chunk, and its own KV beside it: the ring needs no room for more than the window.

A ring that is to be saved at a position within a chunk is never there as a whole. So the snapshot gets what the ring
held before the step, and then, like the ring, the chunk's tokens up to that position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from chorus_kernels.attention import paged_rows, visibility
from chorus_workers.runner.base import SequenceChunk
from chorus_workers.runner.kv_memory import KVMemory

# A group of decode sequences ends where a context is this many times as long as the group's shortest.
_GROUP_RATIO = 1.5
# Rows gathered at once, over a group: keeps the copies within tens of megabytes.
_GROUP_ROWS = 1 << 16
# Scores at once in a prefill tile, over all heads of a sequence; and most queries of one.
_TILE_SCORES = 1 << 20
_TILE_QUERIES = 256


@dataclass(frozen=True, slots=True)
class Reads:
    """KV rows of a group of decode sequences: rows int64 [S, 1 + L]; mask [S, 1, 1, 1 + L], None if all are alike."""

    rows: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    tokens: slice
    pages: Reads
    ring: Reads


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries of a chunk, the keys they may see (of the chunk's gathered ones), and the mask [1, 1, T, 1 + L]."""

    queries: slice
    keys: slice
    mask: Tensor


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    tokens: slice
    # Positions 0 to the chunk's last, in pages, behind row 0: int64 [1, 1 + L].
    page_rows: Tensor
    page_tiles: tuple[Tile, ...]
    # Positions before the chunk that its first token still sees, in the ring, behind row 0: int64 [1, 1 + L].
    ring_rows: Tensor
    ring_tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    token_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    page_writes: Tensor  # int64 [T]: each token's row in pages
    ring_writes: Tensor  # int64 [R]: rows in rings and snapshots, of the tokens
    ring_tokens: Tensor | None  # int64 [R]; None: all, in order
    decode: tuple[DecodeGroup, ...]
    prefill: tuple[PrefillChunk, ...]
    # For each chunk of the batch, in its order: its last token.
    last_tokens: tuple[int, ...]


def plan_step(chunks: Sequence[SequenceChunk], memory: KVMemory, num_heads: int) -> StepPlan:
    """Lays out a step. num_heads: query heads of this shard, for the size of tiles."""
    order = sorted(range(len(chunks)), key=lambda i: (len(chunks[i].token_ids) > 1, chunks[i].start))
    ordered = [chunks[i] for i in order]
    num_decode = sum(len(chunk.token_ids) == 1 for chunk in ordered)
    ends = [0]
    for chunk in ordered:
        ends.append(ends[-1] + len(chunk.token_ids))
    last_tokens = dict(zip(order, (end - 1 for end in ends[1:]), strict=True))
    page_writes, ring_writes, ring_tokens = _writes(ordered, memory)
    return StepPlan(
        token_ids=torch.tensor([token for chunk in ordered for token in chunk.token_ids]),
        positions=torch.tensor([c.start + i for c in ordered for i in range(len(c.token_ids))]),
        page_writes=torch.tensor(page_writes),
        ring_writes=torch.tensor(ring_writes, dtype=torch.int64),
        ring_tokens=None if ring_tokens == list(range(ends[-1])) else torch.tensor(ring_tokens, dtype=torch.int64),
        decode=tuple(_decode_groups(ordered[:num_decode], memory)),
        prefill=tuple(
            _prefill_chunk(chunk, slice(start, end), memory, num_heads)
            for chunk, (start, end) in zip(ordered[num_decode:], pairwise(ends[num_decode:]), strict=True)
        ),
        last_tokens=tuple(last_tokens[i] for i in range(len(chunks))),
    )


def prepare_rings(chunks: Sequence[SequenceChunk], memory: KVMemory) -> None:
    """Fills rings from snapshots, and snapshots with what the rings hold so far."""
    for chunk in chunks:
        if chunk.restore is not None:
            memory.copy_ring(memory.snapshot_slot(chunk.restore), chunk.slot)
    for chunk in chunks:
        for _, snapshot in chunk.saves:
            memory.copy_ring(chunk.slot, memory.snapshot_slot(snapshot))


def _writes(chunks: Sequence[SequenceChunk], memory: KVMemory) -> tuple[list[int], list[int], list[int]]:
    """Each token's row in pages; the rows in rings and snapshots, and which tokens they are: of a chunk that is longer,
    the last ones before its end, or before the position that is saved."""
    page_writes: list[int] = []
    ring_writes: list[int] = []
    ring_tokens: list[int] = []
    for chunk in chunks:
        first, start, end = len(page_writes), chunk.start, chunk.start + len(chunk.token_ids)
        saves = [(position, memory.snapshot_slot(snapshot)) for position, snapshot in chunk.saves]
        for stop, slot in ((end, chunk.slot), *saves):
            for position in range(max(start, stop - memory.window), stop):
                ring_tokens.append(first + position - start)
                ring_writes.append(memory.ring_row(slot, position))
        page_writes += [memory.page_row(chunk.block_table, position) for position in range(start, end)]
    return page_writes, ring_writes, ring_tokens


def _decode_groups(chunks: Sequence[SequenceChunk], memory: KVMemory) -> list[DecodeGroup]:
    """Groups of decode sequences, which come ordered by length."""
    groups, first = [], 0
    for i in range(1, len(chunks) + 1):
        if i < len(chunks):
            length = chunks[i].start + 1
            alike = length <= _GROUP_RATIO * (chunks[first].start + memory.window + 1)
            if alike and length * (i + 1 - first) <= _GROUP_ROWS:
                continue
        groups.append(_decode_group(chunks[first:i], slice(first, i), memory))
        first = i
    return groups


def _decode_group(chunks: Sequence[SequenceChunk], tokens: slice, memory: KVMemory) -> DecodeGroup:
    lengths = [chunk.start + 1 for chunk in chunks]
    longest = max(lengths)
    num_blocks = -(-longest // memory.block_size)
    tables = torch.tensor([_padded(chunk.block_table, num_blocks) for chunk in chunks])
    pages = _reads(1 + paged_rows(tables, memory.block_size)[:, :longest], lengths)
    # Beyond the window every row of the ring is visible, in whatever order they lie; before that, the first rows are.
    visible = [min(length, memory.window) for length in lengths]
    slots = torch.tensor([chunk.slot for chunk in chunks]).unsqueeze(-1)
    ring = _reads(1 + slots * memory.window + torch.arange(max(visible)), visible)
    return DecodeGroup(tokens, pages, ring)


def _padded(table: Sequence[int], length: int) -> list[int]:
    used = list(table[:length])
    return used + [0] * (length - len(used))


def _reads(rows: Tensor, lengths: list[int]) -> Reads:
    """Puts row 0 before rows [S, L], and in place of what lies beyond each sequence's length."""
    if min(lengths) == rows.shape[1]:
        return Reads(torch.nn.functional.pad(rows, (1, 0)), None)
    beyond = torch.arange(rows.shape[1]) >= torch.tensor(lengths).unsqueeze(-1)
    rows = torch.nn.functional.pad(rows.masked_fill(beyond, 0), (1, 0))
    mask = torch.zeros(rows.shape).masked_fill_(torch.nn.functional.pad(beyond, (1, 0)), float("-inf"))
    return Reads(rows, mask[:, None, None])


def _prefill_chunk(chunk: SequenceChunk, tokens: slice, memory: KVMemory, num_heads: int) -> PrefillChunk:
    start, end = chunk.start, chunk.start + len(chunk.token_ids)
    table = torch.tensor(list(chunk.block_table[: -(-end // memory.block_size)]))
    page_rows = 1 + paged_rows(table, memory.block_size)[:end]
    oldest = max(0, start - memory.window + 1)
    ring_rows = torch.tensor(
        [memory.ring_row(chunk.slot, position) for position in range(oldest, start)], dtype=torch.int64
    )
    return PrefillChunk(
        tokens=tokens,
        page_rows=torch.nn.functional.pad(page_rows, (1, 0)).unsqueeze(0),
        page_tiles=_tiles(start, end, 0, None, num_heads),
        ring_rows=torch.nn.functional.pad(ring_rows, (1, 0)).unsqueeze(0),
        ring_tiles=_tiles(start, end, oldest, memory.window, num_heads) if memory.window else (),
    )


def _tiles(start: int, end: int, first_key: int, window: int | None, num_heads: int) -> tuple[Tile, ...]:
    """Splits the queries at positions start to end - 1, over keys at positions first_key to end - 1."""
    num_keys = end - first_key if window is None else min(end - first_key, window + _TILE_QUERIES)
    size = max(1, min(_TILE_QUERIES, _TILE_SCORES // (num_heads * num_keys)))
    tiles = []
    for low in range(start, end, size):
        high = min(low + size, end)
        oldest = first_key if window is None else max(first_key, low - window + 1)
        visible = visibility(torch.arange(low, high), torch.arange(oldest, high), window)
        mask = torch.zeros(high - low, 1 + high - oldest)
        mask[:, 1:].masked_fill_(~visible, float("-inf"))
        tiles.append(
            Tile(slice(low - start, high - start), slice(oldest - first_key, high - first_key), mask[None, None])
        )
    return tuple(tiles)
