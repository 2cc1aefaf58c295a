"""Device code that writes KV memory and rotates what goes there; the memory's layout is told in `_kernel`."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def write_kv_kernel(
    k,
    v,
    kv,
    rows,
    num_rows,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    part_stride,
    block_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program copies BLOCK_R of the T * Hkv pairs (token, head)."""
    pair = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    token, head = (pair // NUM_KV_HEADS).to(tl.int64), pair % NUM_KV_HEADS
    row = tl.load(rows + token, mask=pair < num_rows, other=-1)
    mask = (row >= 0)[:, None] & (d < HEAD_DIM)[None, :]
    keys = tl.load(k + (token * k_token_stride + head * k_head_stride)[:, None] + d[None, :], mask=mask)  # [BR, BD]
    values = tl.load(v + (token * v_token_stride + head * v_head_stride)[:, None] + d[None, :], mask=mask)  # [BR, BD]
    target = kv + _row_offset(row, head, block_stride, HEAD_DIM, BLOCK_SIZE)[:, None] + d[None, :]
    tl.store(target, keys.to(kv.dtype.element_ty), mask=mask)
    tl.store(target + part_stride, values.to(kv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def rope_kernel(
    qkv,
    cos_sin,
    q,
    k,
    v,
    kv,
    rows,
    num_rows,
    qkv_stride,
    part_stride,
    block_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TO_MEMORY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program takes BLOCK_R of the T * (Hq + 2 Hkv) pairs (token, head), in two tiles: the halves of the heads.

    Keys and values go to `kv` with TO_MEMORY, else to `k` and `v`.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    ALL_HEADS: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    pair = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_H)
    token, head = (pair // ALL_HEADS).to(tl.int64), pair % ALL_HEADS
    mask = (pair < num_rows)[:, None] & (d < HALF)[None, :]
    source = qkv + (token * qkv_stride + head * HEAD_DIM)[:, None] + d[None, :]
    first = tl.load(source, mask=mask).to(tl.float32)  # [BR, BH]
    second = tl.load(source + HALF, mask=mask).to(tl.float32)  # [BR, BH]
    turned = head < NUM_HEADS + NUM_KV_HEADS
    table = cos_sin + (token * HEAD_DIM)[:, None] + d[None, :]
    cos = tl.load(table, mask=mask & turned[:, None])  # [BR, BH]
    sin = tl.load(table + HALF, mask=mask & turned[:, None])  # [BR, BH]
    first, second = (
        tl.where(turned[:, None], first * cos - second * sin, first),
        tl.where(turned[:, None], second * cos + first * sin, second),
    )

    is_q = head < NUM_HEADS
    target = q + (token * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM)[:, None] + d[None, :]
    _store_halves(target, first, second, mask & is_q[:, None], HALF)
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    kv_head = tl.where(is_v, head - NUM_KV_HEADS, head) - NUM_HEADS
    if TO_MEMORY:
        row = tl.load(rows + token, mask=(pair < num_rows) & (head >= NUM_HEADS), other=-1)
        part = is_v.to(tl.int64) * part_stride
        target = kv + (part + _row_offset(row, kv_head, block_stride, HEAD_DIM, BLOCK_SIZE))[:, None] + d[None, :]
        _store_halves(target, first, second, mask & (row >= 0)[:, None], HALF)
    else:
        offset = (token * (NUM_KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM)[:, None] + d[None, :]
        _store_halves(k + offset, first, second, mask & (turned & (head >= NUM_HEADS))[:, None], HALF)
        _store_halves(v + offset, first, second, mask & is_v[:, None], HALF)


@triton.jit
def _store_halves(target, first, second, mask, HALF: tl.constexpr):
    tl.store(target, first.to(target.dtype.element_ty), mask=mask)
    tl.store(target + HALF, second.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _row_offset(row, head, block_stride, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where a row of a head begins in one part (keys or values) of KV memory: int64."""
    return (row // BLOCK_SIZE).to(tl.int64) * block_stride + (head * BLOCK_SIZE + row % BLOCK_SIZE) * HEAD_DIM
