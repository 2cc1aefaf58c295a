"""Device code of attention. All softmax state is float32 and in powers of two: exp(x) = 2^(x log2 e).

KV memory of one layer is [2, blocks, Hkv, BLOCK_SIZE, D], keys then values; row r is offset r % BLOCK_SIZE of block
r // BLOCK_SIZE. A window layer's ring is one block with a row per position of the window.
"""

import triton
import triton.language as tl

from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous

_LOG2_E = tl.constexpr(1.4426950408889634)
# Where no score has been seen yet. Finite, so that a difference of two is never NaN.
_FLOOR = tl.constexpr(-1e30)


@triton.jit
def _paged_offset(table, position, mask, head, block_stride, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where a head's rows at these positions begin in one part of KV memory: int64. Masked ones are not looked up."""
    block = tl.load(table + position // BLOCK_SIZE, mask=mask, other=0).to(tl.int64)
    return block * block_stride + (head * BLOCK_SIZE + position % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def _load_rows(rows, mask, DTYPE: tl.constexpr):
    """Keys or values as products take them. fp8 goes by way of float32: the GPU's own step from there to bfloat16 is
    four times as fast as the one from the float16 that it makes of fp8."""
    x = tl.load(rows, mask=mask, other=0.0)
    if x.dtype.is_fp8():
        x = x.to(tl.float32)
    return x.to(DTYPE)


@triton.jit
def _attend(q, keys, values, scale, visible, top, total, mixed):
    """One step of the online softmax. q: [BM, BD]; keys, values: [BN, BD]; visible: bool, to [BM, BN]; top (the highest
    score so far), total (the weights' sum): [BM]; mixed (the weighted values): [BM, BD]."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(visible, scores, float("-inf"))  # [BM, BN]
    new_top = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    total = total * shrink + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(values.dtype), values, mixed * shrink[:, None], input_precision="ieee")
    return new_top, total, mixed


@triton.jit
def _split(length, num_splits, SPLIT_MIN: tl.constexpr, BLOCK_N: tl.constexpr):
    """Keys a split takes: an equal share in whole tiles, and no less than is worth a split."""
    share = tl.cdiv(tl.cdiv(length, num_splits), BLOCK_N) * BLOCK_N
    return tl.maximum(share, SPLIT_MIN)


# A block table is as wide as the step's longest context: no kernel is compiled for a width.
@triton.jit(do_not_specialize=["table_stride"])
def decode_attention_kernel(
    q,
    cos_sin,
    kv,
    block_tables,
    lengths,
    sinks,
    out,
    partial,
    stats,
    scale,
    q_stride,
    table_stride,
    part_stride,
    block_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    RING: tl.constexpr,
    FUSED: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_MIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (KV head, sequence, split): one query of the group's heads against the split's keys.

    The sink belongs to split 0. With FUSED, `q` is the fused projection [S, (Hq + 2 Hkv) * D] before rotation, and the
    split that the newest position falls in writes its key and value, and takes them from registers: no program reads
    that row of the memory. With SPLIT, `partial` [S, Hq, splits, D] gets the split's weighted values,
    and `stats` [S, Hq, splits, 2] their weights' sum and the highest score.

    Before it waits it reads lengths, tables and angles: the kernel before it must not write them.
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    head, sequence, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(lengths + sequence)
    newest = length - 1
    if RING:
        newest = tl.where(length > 0, newest % BLOCK_SIZE, -1)
        length = tl.minimum(length, BLOCK_SIZE)
    share = _split(length, tl.num_programs(2), SPLIT_MIN, BLOCK_N)
    begin = split * share
    if (split > 0) & (begin >= length):
        # Split 0 waits.
        return
    end = tl.minimum(begin + share, length)

    m, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    in_group, in_head = m < GROUP, d < HEAD_DIM
    query_head = head * GROUP + m
    sink = tl.load(sinks + query_head, mask=in_group, other=0.0).to(tl.float32) * _LOG2_E
    top = tl.where(split == 0, sink, _FLOOR)
    total = tl.where(split == 0, 1.0, tl.zeros([BLOCK_M], tl.float32))
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    table = block_tables + sequence * table_stride
    kv_base = kv + d[None, :]
    if RING:
        ring = tl.load(table).to(tl.int64) * block_stride + head * (BLOCK_SIZE * HEAD_DIM)

    if FUSED:
        HALF: tl.constexpr = HEAD_DIM // 2
        partner = (d + HALF) % HEAD_DIM
        cos = tl.load(cos_sin + sequence * HEAD_DIM + d % HALF, mask=in_head, other=0.0)  # [BD]
        sin = tl.load(cos_sin + sequence * HEAD_DIM + HALF + d % HALF, mask=in_head, other=0.0)
        sin = tl.where(d < HALF, -sin, sin)
    wait_for_previous(DEPENDENT)
    q_base = q + sequence * q_stride
    q_mask = in_group[:, None] & in_head[None, :]
    queries = tl.load(q_base + query_head[:, None] * HEAD_DIM + d[None, :], mask=q_mask, other=0.0)  # [BM, BD]
    if FUSED:
        others = tl.load(q_base + query_head[:, None] * HEAD_DIM + partner[None, :], mask=q_mask, other=0.0)
        queries = (queries.to(tl.float32) * cos[None, :] + others.to(tl.float32) * sin[None, :]).to(q.dtype.element_ty)
        k_base = q_base + (NUM_HEADS + head) * HEAD_DIM
        key = tl.load(k_base + d, mask=in_head, other=0.0).to(tl.float32) * cos  # [BD]
        key += tl.load(k_base + partner, mask=in_head, other=0.0).to(tl.float32) * sin
        key = key.to(kv.dtype.element_ty)
        value = tl.load(k_base + NUM_KV_HEADS * HEAD_DIM + d, mask=in_head, other=0.0).to(kv.dtype.element_ty)
        # Before the loop: afterwards, these would be kept through it, in more registers than there are.
        if (newest >= begin) & (newest < end):
            row = _paged_offset(table, newest, True, head, block_stride, HEAD_DIM, BLOCK_SIZE)
            tl.store(kv + row + d, key, mask=in_head)
            tl.store(kv + part_stride + row + d, value, mask=in_head)
            score = tl.sum(queries.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale  # [BM]
            new_top = tl.maximum(top, score)
            weight = tl.exp2(score - new_top)
            total = total * tl.exp2(top - new_top) + weight
            mixed = weight[:, None] * value.to(tl.float32)[None, :]
            top = new_top

    for tile in tl.range(begin, end, BLOCK_N):
        position = tile + n
        visible = position < end
        if FUSED:
            visible = visible & (position != newest)
        if RING:
            offset = ring + position * HEAD_DIM
        else:
            offset = _paged_offset(table, position, visible, head, block_stride, HEAD_DIM, BLOCK_SIZE)
        mask = visible[:, None] & in_head[None, :]
        keys = _load_rows(kv_base + offset[:, None], mask, queries.dtype)  # [BN, BD]
        values = _load_rows(kv_base + part_stride + offset[:, None], mask, queries.dtype)  # [BN, BD]
        top, total, mixed = _attend(queries, keys, values, scale, visible[None, :], top, total, mixed)

    let_next_begin(DEPENDENT)
    if SPLIT:
        slot = (sequence * NUM_HEADS + query_head) * tl.num_programs(2) + split  # [BM]
        tl.store(partial + (slot * HEAD_DIM)[:, None] + d[None, :], mixed, mask=q_mask)
        tl.store(stats + 2 * slot, total, mask=in_group)
        tl.store(stats + 2 * slot + 1, top, mask=in_group)
    else:
        target = out + ((sequence * NUM_HEADS + query_head) * HEAD_DIM)[:, None] + d[None, :]
        tl.store(target, (mixed / total[:, None]).to(out.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=["num_splits"])
def combine_splits_kernel(
    partial,
    stats,
    lengths,
    out,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT_MIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (query head, sequence): the splits' values, weighed in one fixed order.

    To be launched after `decode_attention_kernel`, which has waited for what wrote the lengths and ends before its
    programs let this one begin.
    """
    let_next_begin(DEPENDENT)
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + sequence)
    share = _split(length, num_splits, SPLIT_MIN, BLOCK_N)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    live = (s == 0) | (s * share < length)
    live = live & (s < num_splits)
    slot = (sequence * NUM_HEADS + head) * num_splits + s
    mask = live[:, None] & (d < HEAD_DIM)[None, :]
    wait_for_previous(DEPENDENT)
    mixed = tl.load(partial + (slot * HEAD_DIM)[:, None] + d[None, :], mask=mask, other=0.0)  # [BS, BD]
    total = tl.load(stats + 2 * slot, mask=live, other=0.0)
    top = tl.load(stats + 2 * slot + 1, mask=live, other=_FLOOR)
    weight = tl.exp2(top - tl.max(top, 0))
    result = tl.sum(mixed * weight[:, None], 0) / tl.sum(total * weight, 0)
    target = out + (sequence * NUM_HEADS + head) * HEAD_DIM + d
    tl.store(target, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride"])
def prefill_attention_kernel(
    q,
    k,
    v,
    kv,
    block_tables,
    cu_tokens,
    starts,
    sinks,
    tiles,
    out,
    scale,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    table_stride,
    part_stride,
    block_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (KV head, tile): BLOCK_M // G queries of one chunk with the group's G heads, rows query-major.

    WINDOW 0 is full attention: every key comes through the pages. Else keys before the chunk come from the ring, and
    the chunk's own from `k` and `v`.

    A query's bits depend on its position and on what it sees, not on the chunk.
    """
    wait_for_previous(DEPENDENT)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    head, tile = tl.program_id(0), tl.program_id(1)
    chunk = tl.load(tiles + 2 * tile)
    if chunk < 0:
        return
    first = tl.load(tiles + 2 * tile + 1)
    token = tl.load(cu_tokens + chunk)
    num_tokens = tl.load(cu_tokens + chunk + 1) - token
    start = tl.load(starts + chunk)
    table = block_tables + chunk.to(tl.int64) * table_stride

    m, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    in_head = d < HEAD_DIM
    query, query_head = first + m // GROUP, head * GROUP + m % GROUP
    live = (m < QUERIES * GROUP) & (query < num_tokens)
    position = start + query  # [BM]
    row = (token + query).to(tl.int64)
    q_mask = live[:, None] & in_head[None, :]
    source = q + (row * q_token_stride + query_head * q_head_stride)[:, None] + d[None, :]
    queries = tl.load(source, mask=q_mask, other=0.0)  # [BM, BD]
    top = tl.load(sinks + query_head, mask=live, other=0.0).to(tl.float32) * _LOG2_E
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    lowest = start + first
    end = tl.minimum(lowest + QUERIES, start + num_tokens)
    kv_base = kv + d[None, :]
    if WINDOW == 0:
        # Up to here every query sees every key.
        whole = (lowest + 1) // BLOCK_N * BLOCK_N
        for begin in tl.range(0, whole, BLOCK_N):
            offset = _paged_offset(table, begin + n, True, head, block_stride, HEAD_DIM, BLOCK_SIZE)
            keys = _load_rows(kv_base + offset[:, None], in_head[None, :], queries.dtype)
            values = _load_rows(kv_base + part_stride + offset[:, None], in_head[None, :], queries.dtype)
            top, total, mixed = _attend(queries, keys, values, scale, True, top, total, mixed)
        for begin in tl.range(whole, end, BLOCK_N):
            key = begin + n
            offset = _paged_offset(table, key, key < end, head, block_stride, HEAD_DIM, BLOCK_SIZE)
            mask = (key < end)[:, None] & in_head[None, :]
            keys = _load_rows(kv_base + offset[:, None], mask, queries.dtype)  # [BN, BD]
            values = _load_rows(kv_base + part_stride + offset[:, None], mask, queries.dtype)  # [BN, BD]
            visible = key[None, :] <= position[:, None]
            top, total, mixed = _attend(queries, keys, values, scale, visible, top, total, mixed)
    else:
        # Tiles begin at multiples of BLOCK_N wherever the chunk does: how a prompt is cut changes no bit.
        oldest = tl.maximum(lowest - WINDOW + 1, 0)
        ring = tl.load(table).to(tl.int64) * block_stride + head * (BLOCK_SIZE * HEAD_DIM)
        for begin in tl.range(oldest // BLOCK_N * BLOCK_N, end, BLOCK_N):
            key = begin + n
            in_ring = kv + ring + key % WINDOW * HEAD_DIM
            fresh = (token + key - start).to(tl.int64)
            k_source = tl.where(key < start, in_ring, k + fresh * k_token_stride + head * k_head_stride)
            v_source = tl.where(key < start, in_ring + part_stride, v + fresh * v_token_stride + head * v_head_stride)
            mask = ((key >= oldest) & (key < end))[:, None] & in_head[None, :]
            keys = _load_rows(k_source[:, None] + d[None, :], mask, queries.dtype)  # [BN, BD]
            values = _load_rows(v_source[:, None] + d[None, :], mask, queries.dtype)  # [BN, BD]
            distance = position[:, None] - key[None, :]
            visible = (distance >= 0) & (distance < WINDOW)
            top, total, mixed = _attend(queries, keys, values, scale, visible, top, total, mixed)

    let_next_begin(DEPENDENT)
    target = out + ((row * NUM_HEADS + query_head) * HEAD_DIM)[:, None] + d[None, :]
    tl.store(target, (mixed / total[:, None]).to(out.dtype.element_ty), mask=q_mask)
