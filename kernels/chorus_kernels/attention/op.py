"""Attention over paged and ring KV memory on the GPU, and the writes of that memory.

    p = softmax([sink_h, q k_0 / sqrt(D), q k_1 / sqrt(D), ...]) over the visible positions;  y = sum_j p_j v_j

KV memory of one layer is one tensor `kv` [2, blocks, Hkv, block_size, D], keys then values, the last three dimensions
contiguous: bfloat16, float32, or float8_e4m3fn, which keeps 4 bits of a number between 2^-6 and 448, makes +-448 of a
larger one, and leaves NaN NaN. Keys and values are rounded to it once, from float32, wherever they are written; whoever
attends sees the rounded ones, its own among them, so that no result depends on how a prompt was cut. In full-attention
layers entry i of a sequence's block table is the block that holds positions i * block_size and on. In window layers
(`ring`) a sequence has one block of `window` rows, its slot's ring, with position p in row p % window. What lies in
rows that no query sees is never used: it may be NaN.

Scores and the softmax are float32. Its weights are rounded to the queries' dtype for the product with the values, which
moves a result by at most 2^-8 of the greatest value in bfloat16, as much as the rounding of the result itself.

Source: `reference`; Dao, "FlashAttention-2" (2023); Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

import math

from torch import Tensor

from chorus_kernels.attention import _kernel, checks
from chorus_kernels.attention.tiles import (
    PREFILL_KEYS,
    PREFILL_REGISTERS,
    PREFILL_ROWS,
    PREFILL_WARPS,
    DecodeTiles,
    decode_tiles,
    invariant_decode_tiles,
    power_of_two,
    prefill_stages,
    prefill_tiles,
)
from chorus_kernels.attention.write_op import rope_and_write, rope_split, write_kv
from chorus_kernels.dependent_launch import dependent_launch

__all__ = [
    "DecodeTiles",
    "decode_attention",
    "decode_tiles",
    "invariant_decode_tiles",
    "prefill_attention",
    "prefill_tiles",
    "rope_decode_attention",
    "rope_split",
    "rope_and_write",
    "write_kv",
]


def decode_attention(
    q: Tensor,
    kv: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    sinks: Tensor,
    *,
    ring: bool,
    tiles: DecodeTiles | None = None,
    scratch: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One query per sequence, at position length - 1, whose own key and value are in the memory already.

    q: bfloat16 or float32 [S, Hq, D], the last two dimensions contiguous; block_tables: int32 [S, B] (ring: [S, 1], the
    slot); lengths: int32 [S], at most B * block_size (ring: any): the first `length` positions are visible, or the
    ring's first min(length, window) rows; 0 is a padded slot, whose result is zeros; sinks: [Hq]; tiles: by default
    `decode_tiles` of the shapes, with the same for all batch sizes a sequence gets the same bits in all; scratch:
    float32, at least `tiles.scratch_size(S, Hq, D)` elements; returns (or fills `out` with) q's dtype [S, Hq, D].
    Errors: ValueError.
    """
    memory = checks.memory(kv)
    checks.queries(q, memory)
    cos_sin = q  # Not read.
    return _decode(q, cos_sin, kv, memory, q.shape[1], block_tables, lengths, sinks, ring, tiles, scratch, out)


def rope_decode_attention(
    qkv: Tensor,
    cos_sin: Tensor,
    kv: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    sinks: Tensor,
    *,
    ring: bool,
    tiles: DecodeTiles | None = None,
    scratch: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`rope_and_write` and `decode_attention` in one launch: position length - 1 is written, then seen.

    qkv, cos_sin: as in `rope_and_write`, with T = S; the row is found through the block table (padded slots write
    nothing); the rest as in `decode_attention`. Errors: ValueError.
    """
    memory = checks.memory(kv)
    num_heads = checks.projection(qkv, cos_sin, memory.num_kv_heads, memory.head_dim)
    checks.same_rows(qkv=qkv, cos_sin=cos_sin)
    checks.same_device(kv, cos_sin=cos_sin)
    return _decode(qkv, cos_sin, kv, memory, num_heads, block_tables, lengths, sinks, ring, tiles, scratch, out)


def prefill_attention(
    q: Tensor,
    kv: Tensor,
    block_tables: Tensor,
    cu_tokens: Tensor,
    starts: Tensor,
    sinks: Tensor,
    tile_map: Tensor,
    *,
    window: int | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of a batch of chunks, chunk c being tokens cu_tokens[c] ... cu_tokens[c + 1] - 1.

    Full layers (window None): keys and values of all positions up to a query's come from the pages, the chunk's own
    among them. Window layers: those before the chunk come from the ring as it was before the chunk, the chunk's own
    from k and v; a query at i sees j with i - window < j <= i.

    q: bfloat16 or float32 [T, Hq, D]; k, v: kv's dtype [T, Hkv, D]; of all three the last dimension is contiguous;
    block_tables: int32 [C, B] (window: [C, 1], the slot, and kv's block_size is the window); cu_tokens: int32 [C + 1];
    starts: int32 [C], the position of each chunk's first token; sinks: [Hq]; tile_map: int32 [N, 2], `prefill_tiles`
    of the chunks with Hq / Hkv; returns (or fills `out` with) q's dtype [T, Hq, D], where tokens of no tile keep what
    they held. Errors: ValueError.
    """
    memory = checks.memory(kv)
    num_heads = checks.queries(q, memory, packed=False)
    if num_heads // memory.num_kv_heads > PREFILL_ROWS:
        raise ValueError(f"q must have at most {PREFILL_ROWS} heads per KV head, not {num_heads}")
    if (window is None) != (k is None) or (window is None) != (v is None):
        raise ValueError("window, k and v must be given together, or none of them")
    if window is not None and window != memory.block_size:
        raise ValueError(f"kv must have blocks of the window's {window} rows, not {memory.block_size}")
    for name, fresh in (("k", k), ("v", v)):
        if fresh is not None:
            checks.heads(name, fresh, memory.num_kv_heads, memory.head_dim, dtype=kv.dtype)
            checks.same_rows(q=q, **{name: fresh})
    checks.table(block_tables, window is not None)
    checks.same_rows(block_tables=block_tables, starts=checks.index("starts", starts, 1))
    if checks.index("cu_tokens", cu_tokens, 1).shape[0] != starts.shape[0] + 1:
        raise ValueError(f"cu_tokens must have an entry more than starts' {starts.shape[0]}, not {cu_tokens.shape[0]}")
    if checks.index("tile_map", tile_map, 2).shape[1] != 2 or not tile_map.is_contiguous():
        raise ValueError(f"tile_map must be contiguous [N, 2], not {list(tile_map.shape)}")
    checks.vector("sinks", sinks, num_heads)
    tensors = {"q": q, "sinks": sinks, "block_tables": block_tables, "cu_tokens": cu_tokens, "starts": starts}
    checks.same_device(kv, **tensors, tile_map=tile_map)
    out = checks.output("out", out, q, tuple(q.shape))
    if q.shape[0] == 0 or tile_map.shape[0] == 0:
        return out
    k, v = q if k is None else k, q if v is None else v  # Not read in full layers.
    checks.same_device(kv, k=k, v=v)
    _kernel.prefill_attention_kernel[(memory.num_kv_heads, tile_map.shape[0])](
        q,
        k,
        v,
        kv,
        block_tables,
        cu_tokens,
        starts,
        sinks,
        tile_map,
        out,
        _scale(memory.head_dim),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        block_tables.stride(0),
        *kv.stride()[:2],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=memory.num_kv_heads,
        HEAD_DIM=memory.head_dim,
        BLOCK_SIZE=memory.block_size,
        WINDOW=window or 0,
        BLOCK_M=PREFILL_ROWS,
        BLOCK_N=PREFILL_KEYS,
        BLOCK_D=power_of_two(memory.head_dim),
        num_warps=PREFILL_WARPS,
        num_stages=prefill_stages(window),
        maxnreg=PREFILL_REGISTERS,
        **dependent_launch(q.device),
    )
    return out


def _decode(
    q: Tensor,
    cos_sin: Tensor,
    kv: Tensor,
    memory: checks.Memory,
    num_heads: int,
    block_tables: Tensor,
    lengths: Tensor,
    sinks: Tensor,
    ring: bool,
    tiles: DecodeTiles | None,
    scratch: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    num_sequences, head_dim = q.shape[0], memory.head_dim
    checks.table(block_tables, ring)
    checks.same_rows(q=q, block_tables=block_tables, lengths=checks.index("lengths", lengths, 1))
    checks.vector("sinks", sinks, num_heads)
    checks.same_device(kv, q=q, block_tables=block_tables, lengths=lengths, sinks=sinks)
    out = checks.output("out", out, q, (num_sequences, num_heads, head_dim))
    if num_sequences == 0:
        return out
    max_length = block_tables.shape[1] * memory.block_size
    tiles = tiles or decode_tiles(num_sequences, memory.num_kv_heads, max_length, ring=ring)
    size, num_splits = tiles.scratch_size(num_sequences, num_heads, head_dim), tiles.num_splits
    if ring and num_splits != 1:
        raise ValueError(f"tiles must not split a ring, not into {num_splits}")
    scratch = checks.scratch(scratch, size, q.device)
    stats = scratch[size // (head_dim + 2) * head_dim :]
    group = num_heads // memory.num_kv_heads
    _kernel.decode_attention_kernel[(memory.num_kv_heads, num_sequences, num_splits)](
        q,
        cos_sin,
        kv,
        block_tables,
        lengths,
        sinks,
        out,
        scratch,
        stats,
        _scale(head_dim),
        q.stride(0),
        block_tables.stride(0),
        *kv.stride()[:2],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=memory.num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=memory.block_size,
        RING=ring,
        FUSED=q.ndim == 2,
        SPLIT=num_splits > 1,
        SPLIT_MIN=tiles.split_min,
        BLOCK_M=power_of_two(group),
        BLOCK_N=tiles.block_keys,
        BLOCK_D=power_of_two(head_dim),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **dependent_launch(q.device),
    )
    if num_splits > 1:
        _kernel.combine_splits_kernel[(num_heads, num_sequences)](
            scratch,
            stats,
            lengths,
            out,
            num_splits,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            SPLIT_MIN=tiles.split_min,
            BLOCK_N=tiles.block_keys,
            BLOCK_S=power_of_two(num_splits),
            BLOCK_D=power_of_two(head_dim),
            num_warps=4,
            **dependent_launch(q.device),
        )
    return out


def _scale(head_dim: int) -> float:
    """1 / sqrt(D), and log2 e for the kernels' powers of two."""
    return math.log2(math.e) / math.sqrt(head_dim)
