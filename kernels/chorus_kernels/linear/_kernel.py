"""Device code of the dense product for few tokens: bound by reading the weight once.

A program has 8 rows of the weight, the columns of one tensor core tile, and up to 16 tokens, its rows. Each of its four
warps takes a quarter of K. A lane's loads of 8 neighbouring weights become its operand's registers as they lie; the
tokens' K is in the same order.

Of a plain weight a warp reads 64 neighbouring bytes of each of 8 rows; of tiles (`layout`), 512 in a row, which the
memory gives faster.
"""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import dot
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous
from chorus_kernels.linear import layout

TOKENS: tl.constexpr = tl.constexpr(16)
ROWS: tl.constexpr = tl.constexpr(layout.TILE_ROWS)
WARPS: tl.constexpr = tl.constexpr(4)
# Weights are read once, and leave the caches to the tokens.
_STREAMED: tl.constexpr = tl.constexpr("evict_first")


@triton.jit
def _inside(begin, end, K: tl.constexpr):
    """Which columns of the blocks at begin [1, 4, 1] are a warp's own: [1, 4, 32], or [1, 4, 1] where all or none
    are."""
    if K % 32 == 0:
        return begin < end
    else:
        return begin + tl.arange(0, 32)[None, None, :] < end


@triton.jit
def _load_weights(ptrs, begin, end, K: tl.constexpr, TILED: tl.constexpr):
    """256 columns of each warp's part: eight [8, 4, 32], zeros past the end. Each is 16 bytes of a lane's row."""
    blocks = ()
    for i in tl.static_range(8):
        if TILED:
            mask = begin + i * 32 < end
            block = tl.load(ptrs + i * (ROWS * 32), mask=mask, other=0.0, eviction_policy=_STREAMED)
        else:
            mask = _inside(begin + i * 32, end, K)
            block = tl.load(ptrs + i * 32, mask=mask, other=0.0, eviction_policy=_STREAMED)
        blocks = blocks + (block,)
    return blocks


@triton.jit
def _load_tokens(ptrs, num_tokens, begin, end, K: tl.constexpr, HALVES: tl.constexpr):
    """The same columns of 8 or 16 tokens: eight [16, 4, 32]."""
    t = tl.arange(0, 8)[:, None, None]
    blocks = ()
    for i in tl.static_range(8):
        mask = _inside(begin + i * 32, end, K)
        first = tl.load(ptrs + i * 32, mask=mask & (t < num_tokens), other=0.0)
        if HALVES == 2:
            second = tl.load(ptrs + 8 * K + i * 32, mask=mask & (t + 8 < num_tokens), other=0.0)
        else:
            second = tl.zeros_like(first)
        # By halves, so that no lane holds what another needs.
        both = tl.permute(tl.join(first, second), 3, 0, 1, 2)
        blocks = blocks + (tl.reshape(both, TOKENS, WARPS, 32),)
    return blocks


@triton.jit
def _add_chunk(even, odd, x, weights):
    """Two sums, so that products needn't wait for one another."""
    for i in tl.static_range(4):
        even = dot(_operand(x[2 * i]), tl.permute(_operand(weights[2 * i]), 0, 2, 1), even)
        odd = dot(_operand(x[2 * i + 1]), tl.permute(_operand(weights[2 * i + 1]), 0, 2, 1), odd)
    return even, odd


@triton.jit
def _operand(block):
    """[R, 4, (t, j, upper, p)] to [4, R, (j, t, upper, p)]."""
    R: tl.constexpr = block.shape[0]
    return tl.reshape(tl.permute(tl.reshape(block, R, WARPS, 4, 2, 2, 2), 1, 0, 3, 2, 4, 5), WARPS, R, 32)


@triton.jit(do_not_specialize=["num_tokens"])
def linear_kernel(
    x_ptr,  # [num_tokens, K]
    weight_ptr,  # [N, K], or with TILED its tiles
    bias_ptr,  # [N], with HAS_BIAS
    residual_ptr,  # [num_tokens, N], with HAS_RESIDUAL
    out_ptr,  # [num_tokens, N]
    num_tokens,
    N,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HALVES: tl.constexpr,
    TILED: tl.constexpr,
    HOLD_NEXT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out = x W^T + bias + residual. HOLD_NEXT: whether the next kernel may begin only at this one's end."""
    if not HOLD_NEXT:
        let_next_begin(DEPENDENT)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Whole blocks of 32.
    PART: tl.constexpr = ((K + 31) // 32 + 3) // 4 * 32
    CHUNKS: tl.constexpr = (PART + 255) // 256
    begin = tl.arange(0, WARPS)[None, :, None] * PART
    end = tl.minimum(begin + PART, K)
    column = begin + tl.arange(0, 32)[None, None, :]  # [1, 4, 32]
    if TILED:
        CHUNK: tl.constexpr = 256 * ROWS
        tile = weight_ptr + tl.program_id(0).to(tl.int64) * ((K + 31) // 32 * (ROWS * 32))
        w_ptrs = tile + tl.arange(0, ROWS)[:, None, None] * 32 + (begin * ROWS + tl.arange(0, 32)[None, None, :])
    else:
        CHUNK: tl.constexpr = 256
        # Rows past the end are the last one again: what comes of them is not stored.
        w_ptrs = weight_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None, None] * K + column
    x_ptrs = x_ptr + tl.arange(0, 8)[:, None, None] * K + column
    acc = tl.zeros([WARPS, TOKENS, ROWS], tl.float32)
    even, odd = acc, acc
    w0 = _load_weights(w_ptrs, begin, end, K, TILED)
    w1 = _load_weights(w_ptrs + CHUNK, begin + 256, end, K, TILED) if CHUNKS > 1 else w0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)  # [ROWS]
    wait_for_previous(DEPENDENT)
    x = _load_tokens(x_ptrs, num_tokens, begin, end, K, HALVES)
    for i in tl.static_range(CHUNKS):
        # Weights two ahead of use, tokens one. No load crosses a barrier: the assembler would move those above down to
        # their first use.
        w2, next_x = w1, x
        if i + 2 < CHUNKS:
            w2 = _load_weights(w_ptrs + (i + 2) * CHUNK, begin + (i + 2) * 256, end, K, TILED)
        if i + 1 < CHUNKS:
            next_x = _load_tokens(x_ptrs + (i + 1) * 256, num_tokens, begin + (i + 1) * 256, end, K, HALVES)
        tl.debug_barrier()
        even, odd = _add_chunk(even, odd, x, w0)
        w0, w1, x = w1, w2, next_x
    if HOLD_NEXT:
        let_next_begin(DEPENDENT)
    y = tl.sum(even + odd, 0)  # [TOKENS, ROWS]
    t = tl.arange(0, TOKENS)
    where = t.to(tl.int64)[:, None] * N + n[None, :]
    inside = (t < num_tokens)[:, None] & (n < N)[None, :]
    if HAS_BIAS:
        y += bias[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, y.to(out_ptr.dtype.element_ty), mask=inside)
