"""A step's work as the kernels take it.

Tokens are laid out decode first, then prefill.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from chorus_kernels.attention.tiles import prefill_tiles
from chorus_workers.runner.base import PENDING_TOKEN, SequenceChunk
from chorus_workers.runner.triton.kv_memory import DeviceKVMemory
from chorus_workers.runner.triton.transfer import Upload


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """S sequences with one token each."""

    lengths: Tensor  # int32 [S]: the positions that a sequence sees, its own token's among them
    block_tables: Tensor  # int32 [S, B]
    slots: Tensor  # int32 [S, 1]


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """C chunks, with P tokens in all."""

    cu_tokens: Tensor  # int32 [C + 1], from the first token of prefill
    starts: Tensor  # int32 [C]
    block_tables: Tensor  # int32 [C, B]
    slots: Tensor  # int32 [C, 1]
    page_rows: Tensor  # int32 [P]
    ring_rows: Tensor  # int32 [P]: -1 where a later token of the chunk takes the row
    tile_map: Tensor  # int32 [N, 2]
    # Tokens whose KV goes to a snapshot too: int32 [Q] among the P, and their rows in the rings.
    saved_tokens: Tensor
    saved_rows: Tensor


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Of num_decode tokens of decode, and behind them those of prefill."""

    num_decode: int
    decode: DecodeInputs | None
    prefill: PrefillInputs | None


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens: those of decode, then those of prefill."""

    token_ids: Tensor  # int32 [T]
    positions: Tensor  # int32 [T]
    attention: AttentionInputs
    # int32 [S]: the last token of each chunk that asks for a sample, in the batch's order. None: all tokens.
    sampled_tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step, and what is to be done around it."""

    inputs: StepInputs
    # Tokens that the step before draws, and the slots that it draws them for: int32 [2, n].
    pending: Tensor
    # The slots of the chunks that ask for a sample: int64 [S].
    sampled_slots: Tensor
    # Rings to be copied before anything else, from and to which slot: int32 [2, n] each, restores first. A snapshot to
    # be saved begins with what the ring held before the step, and gets the chunk's tokens as the ring does.
    restores: Tensor
    saves: Tensor


def prepare_step(
    chunks: Sequence[SequenceChunk],
    memory: DeviceKVMemory,
    group: int,
    device: torch.device,
    *,
    batch_invariant: bool = False,
) -> PreparedStep:
    """Lays out a step's chunks. group: query heads per KV head; batch_invariant: as in `is_prefill`."""
    prefills = [is_prefill(chunk, batch_invariant) for chunk in chunks]
    order = sorted(range(len(chunks)), key=prefills.__getitem__)
    ordered = [chunks[i] for i in order]
    num_decode = len(chunks) - sum(prefills)
    ends = dict(zip(order, accumulate(len(chunk.token_ids) for chunk in ordered), strict=True))
    upload = Upload()
    token_ids = upload.add([token for chunk in ordered for token in chunk.token_ids])
    positions = upload.add([c.start + i for c in ordered for i in range(len(c.token_ids))])
    sampled = upload.add([ends[i] - 1 for i, chunk in enumerate(chunks) if chunk.sample is not None])
    slots = upload.add([chunk.slot for chunk in chunks if chunk.sample is not None], np.int64)
    # Such a token is its chunk's only one, so that the chunk is of decode, or asks for it to be saved.
    waiting = [(ends[i] - 1, c.slot) for i, c in enumerate(chunks) if c.token_ids[0] == PENDING_TOKEN]
    pending = upload.add(_pairs(waiting))
    decode = _add_decode(upload, ordered[:num_decode], memory)
    prefill = _add_prefill(upload, ordered[num_decode:], memory, group)
    saves = upload.add(_pairs([(c.slot, memory.snapshot_slot(snapshot)) for c in chunks for _, snapshot in c.saves]))
    restored = [(memory.snapshot_slot(c.restore), c.slot) for c in chunks if c.restore is not None]
    restores = upload.add(_pairs(restored))
    sent = upload.to(device)
    attention = AttentionInputs(
        num_decode,
        DecodeInputs(**sent.named(decode)) if num_decode else None,
        PrefillInputs(**sent.named(prefill)) if num_decode < len(ordered) else None,
    )
    inputs = StepInputs(sent[token_ids], sent[positions], attention, sent[sampled])
    return PreparedStep(inputs, sent[pending], sent[slots], sent[restores], sent[saves])


def is_prefill(chunk: SequenceChunk, batch_invariant: bool = False) -> bool:
    """Decode attention writes one ring, and no snapshot beside it. batch_invariant: whether a prompt's token must have
    one way through the kernels, though it be the last of its chunk."""
    if len(chunk.token_ids) > 1 or chunk.saves:
        return True
    return (
        batch_invariant
        and not chunk.replayed
        and (chunk.sample is None or chunk.start < chunk.sample.num_prompt_tokens)
    )


def _pairs(pairs: Sequence[tuple[int, int]]) -> ArrayLike:
    """[n] pairs as [2, n]."""
    return np.array(pairs, np.int32).reshape(-1, 2).T


def _add_decode(upload: Upload, chunks: Sequence[SequenceChunk], memory: DeviceKVMemory) -> dict[str, int]:
    """The numbers of the arrays that are DecodeInputs' fields."""
    return {
        "lengths": upload.add([chunk.start + 1 for chunk in chunks]),
        "block_tables": upload.add(_tables(chunks, memory)),
        "slots": upload.add([[chunk.slot] for chunk in chunks]),
    }


def _add_prefill(upload: Upload, chunks: Sequence[SequenceChunk], memory: DeviceKVMemory, group: int) -> dict[str, int]:
    """The numbers of the arrays that are PrefillInputs' fields."""
    lengths, starts = [len(chunk.token_ids) for chunk in chunks], [chunk.start for chunk in chunks]
    page_rows, ring_rows = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    saved_tokens, saved_rows = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for chunk, length, first in zip(chunks, lengths, accumulate(lengths, initial=0), strict=False):
        positions = np.arange(chunk.start, chunk.start + length, dtype=np.int32)
        page_rows.append(memory.page_rows(chunk.block_table, positions))
        rows = memory.ring_rows(chunk.slot, positions)
        rows[: max(0, length - memory.window)] = -1
        ring_rows.append(rows)
        for stop, snapshot in chunk.saves:
            kept = np.arange(max(chunk.start, stop - memory.window), stop, dtype=np.int32)
            saved_tokens.append(first + kept - np.int32(chunk.start))
            saved_rows.append(memory.ring_rows(memory.snapshot_slot(snapshot), kept))
    return {
        "cu_tokens": upload.add([0, *accumulate(lengths)]),
        "starts": upload.add(starts),
        "block_tables": upload.add(_tables(chunks, memory)),
        "slots": upload.add([[chunk.slot] for chunk in chunks]),
        "page_rows": upload.add(np.concatenate(page_rows)),
        "ring_rows": upload.add(np.concatenate(ring_rows)),
        "tile_map": upload.add(prefill_tiles(lengths, starts, group).numpy()),
        "saved_tokens": upload.add(np.concatenate(saved_tokens)),
        "saved_rows": upload.add(np.concatenate(saved_rows)),
    }


def _tables(chunks: Sequence[SequenceChunk], memory: DeviceKVMemory) -> ArrayLike:
    """Block tables int32 [S, B], as wide as the longest context needs."""
    counts = [-(-(chunk.start + len(chunk.token_ids)) // memory.block_size) for chunk in chunks]
    tables = np.zeros((len(chunks), max(counts, default=0)), np.int32)
    for row, chunk, count in zip(tables, chunks, counts, strict=True):
        row[:count] = chunk.block_table[:count]
    return tables
