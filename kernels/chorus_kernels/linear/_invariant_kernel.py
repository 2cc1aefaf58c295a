"""Device code of the dense product whose bits for a token don't depend on how many tokens there are.

Tensor cores get the weights as their left operand, [rows, K] x [K, tokens], and add up 16 products at a time in the
order of K, in one chain, whatever the tiles: no variant splits K. (Without a GPU of sm_90, too, as long as all variants
are compiled to the same instruction.)
"""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import dot, rounded
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous

# Blocks of rows that run side by side with the same tokens, so that the caches keep both.
_GROUP: tl.constexpr = tl.constexpr(8)


@triton.jit(do_not_specialize=["num_tokens"])
def invariant_kernel(
    x_ptr,  # [num_tokens, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N], with HAS_BIAS
    residual_ptr,  # [num_tokens, N], with HAS_RESIDUAL
    out_ptr,  # [num_tokens, N]
    num_tokens,
    N,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out = x W^T + bias + residual. Grid: (blocks of ROWS times blocks of TOKENS)."""
    blocks, token_blocks = tl.cdiv(N, ROWS), tl.cdiv(num_tokens, TOKENS)
    first = tl.program_id(0) // (_GROUP * token_blocks) * _GROUP
    width = tl.minimum(blocks - first, _GROUP)
    within = tl.program_id(0) % (_GROUP * token_blocks)
    n = (first + within % width) * ROWS + tl.arange(0, ROWS)
    t = within // width * TOKENS + tl.arange(0, TOKENS)
    k = tl.arange(0, BLOCK_K)
    # Rows and tokens past the end are the last one again: what comes of them is not stored.
    w_ptrs = weight_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K + k[None, :]
    x_ptrs = x_ptr + tl.minimum(t, num_tokens - 1).to(tl.int64)[None, :] * K + k[:, None]
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    acc = tl.zeros([ROWS, TOKENS], tl.float32)
    for begin in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            weight = tl.load(w_ptrs + begin)
            x = tl.load(x_ptrs + begin)
        else:
            weight = tl.load(w_ptrs + begin, mask=(begin + k < K)[None, :], other=0.0)
            x = tl.load(x_ptrs + begin, mask=(begin + k < K)[:, None], other=0.0)
        acc = dot(weight, x, acc)
    where = t.to(tl.int64)[None, :] * N + n[:, None]
    inside = (t < num_tokens)[None, :] & (n < N)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, rounded(acc, out_ptr.dtype.element_ty), mask=inside)
