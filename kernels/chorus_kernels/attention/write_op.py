"""Writes of KV memory on the GPU, with the rotation of what is written. The memory's layout is told in `op`.

Source: `reference`; Su et al., "RoFormer" (2021).
"""

import torch
from torch import Tensor

from chorus_kernels.attention import _write_kernel, checks
from chorus_kernels.attention.tiles import power_of_two


def write_kv(k: Tensor, v: Tensor, kv: Tensor, rows: Tensor) -> None:
    """Writes keys and values to rows of the memory; row = block * block_size + offset, and -1 writes nothing.

    k, v: [T, Hkv, D], the last dimension contiguous (views of a fused projection will do); rows: int32 [T], no row
    twice: of a chunk longer than a ring, only the last `window` tokens have rows. Numbers are rounded to kv's dtype.
    Errors: ValueError.
    """
    memory = checks.memory(kv)
    checks.heads("k", k, memory.num_kv_heads, memory.head_dim)
    checks.heads("v", v, memory.num_kv_heads, memory.head_dim)
    checks.same_rows(k=k, v=v, rows=checks.index("rows", rows, 1))
    checks.same_device(kv, k=k, v=v, rows=rows)
    num_rows = k.shape[0] * memory.num_kv_heads
    if num_rows == 0:
        return
    block_rows = _copied_rows(num_rows)
    _write_kernel.write_kv_kernel[(-(-num_rows // block_rows),)](
        k,
        v,
        kv,
        rows,
        num_rows,
        *k.stride()[:2],
        *v.stride()[:2],
        *kv.stride()[:2],
        NUM_KV_HEADS=memory.num_kv_heads,
        HEAD_DIM=memory.head_dim,
        BLOCK_SIZE=memory.block_size,
        BLOCK_R=block_rows,
        BLOCK_D=power_of_two(memory.head_dim),
        num_warps=_copy_warps(block_rows),
    )


def rope_and_write(qkv: Tensor, cos_sin: Tensor, kv: Tensor, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Rotates queries and keys of a fused projection, returns the queries, and writes keys and values as `write_kv`.

        y_i = x_i cos_i - x_{i + D/2} sin_i;  y_{i + D/2} = x_{i + D/2} cos_i + x_i sin_i,  for i < D/2, in float32

    qkv: bfloat16 or float32 [T, (Hq + 2 Hkv) * D], queries, keys, values, last dimension contiguous; cos_sin: float32
    [T, D], the tokens' rows of `rope_table`; rows: int32 [T]; returns (or fills `out` with) qkv's dtype [T, Hq, D].
    Errors: ValueError.
    """
    memory = checks.memory(kv)
    num_heads = checks.projection(qkv, cos_sin, memory.num_kv_heads, memory.head_dim)
    checks.same_rows(qkv=qkv, cos_sin=cos_sin, rows=checks.index("rows", rows, 1))
    checks.same_device(kv, qkv=qkv, cos_sin=cos_sin, rows=rows)
    out = checks.output("out", out, qkv, (qkv.shape[0], num_heads, memory.head_dim))
    _rope(qkv, cos_sin, out, out, out, kv, rows, memory, to_memory=True)
    return out


def rope_split(
    qkv: Tensor, cos_sin: Tensor, *, num_kv_heads: int, kv_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same rotation, to fresh tensors: q [T, Hq, D] of qkv's dtype, k and v [T, Hkv, D] of the KV memory's (unless
    given, qkv's too), rounded as `rope_and_write` rounds them.

    For prefill in window layers: `prefill_attention` reads the ring as it was before the chunk, and only then
    `write_kv` writes it. Errors: ValueError.
    """
    head_dim = cos_sin.shape[-1]
    num_heads = checks.projection(qkv, cos_sin, num_kv_heads, head_dim)
    checks.same_rows(qkv=qkv, cos_sin=cos_sin)
    checks.same_device(qkv, cos_sin=cos_sin)
    q = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
    k, v = (qkv.new_empty(qkv.shape[0], num_kv_heads, head_dim, dtype=kv_dtype) for _ in range(2))
    _rope(qkv, cos_sin, q, k, v, q, q, checks.Memory(num_kv_heads, 1, head_dim, (0, 0)), to_memory=False)
    return q, k, v


def _rope(
    qkv: Tensor,
    cos_sin: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    rows: Tensor,
    memory: checks.Memory,
    *,
    to_memory: bool,
) -> None:
    num_rows = qkv.shape[0] * (q.shape[1] + 2 * memory.num_kv_heads)
    if num_rows == 0:
        return
    block_rows = _copied_rows(num_rows)
    _write_kernel.rope_kernel[(-(-num_rows // block_rows),)](
        qkv,
        cos_sin,
        q,
        k,
        v,
        kv,
        rows,
        num_rows,
        qkv.stride(0),
        *memory.strides,
        NUM_HEADS=q.shape[1],
        NUM_KV_HEADS=memory.num_kv_heads,
        HEAD_DIM=memory.head_dim,
        BLOCK_SIZE=memory.block_size,
        TO_MEMORY=to_memory,
        BLOCK_R=block_rows,
        BLOCK_H=power_of_two(memory.head_dim // 2),
        num_warps=_copy_warps(block_rows),
    )


def _copied_rows(num_rows: int) -> int:
    """Heads that one program copies: few while all programs run at once, so that a short batch is spread wide."""
    return 16 if num_rows <= 64 * 1024 else 64


def _copy_warps(block_rows: int) -> int:
    """So that a thread moves 16 bytes of bfloat16 at a time, heads of 64 given."""
    return 2 if block_rows == 16 else 4
