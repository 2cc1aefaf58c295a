"""Device code of the dense product for few tokens.

Bound by reading the weight once: a program owns BN rows of it, and issues the loads of whole rows before it computes.
"""

import triton
import triton.language as tl

# Neighbouring weights of a row that one thread loads (16 bytes of bfloat16), and sums before threads meet.
GROUP = tl.constexpr(8)


@triton.jit
def linear_kernel(
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
    TOKENS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = tl.program_id(0) * BN + tl.arange(0, BN)  # [BN]
    # Rows past the end read the last one: no mask on the wide loads.
    weight_rows = weight_ptr + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * K  # [BN, 1]
    lanes = tl.arange(0, BK)
    num_chunks: tl.constexpr = (K + BK - 1) // BK
    chunks = ()
    for c in tl.static_range(num_chunks):
        k = c * BK + lanes  # [BK]
        if (c + 1) * BK <= K:
            weight = tl.load(weight_rows + k[None, :], eviction_policy="evict_first")
        else:
            weight = tl.load(weight_rows + k[None, :], mask=k[None, :] < K, other=0.0, eviction_policy="evict_first")
        chunks = chunks + (weight,)  # [BN, BK] each
    if HAS_BIAS:
        bias = tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)  # [BN]
    for t in tl.static_range(TOKENS):
        # Nothing of a token that isn't there.
        depth = tl.where(t < num_tokens, K, 0)
        height = tl.where(t < num_tokens, N, 0)
        partial = tl.zeros([BN, BK // GROUP], tl.float32)
        for c in tl.static_range(num_chunks):
            k = c * BK + lanes
            x = tl.load(x_ptr + t * K + k, mask=k < depth, other=0.0).to(tl.float32)  # [BK]
            products = chunks[c].to(tl.float32) * x[None, :]  # [BN, BK]
            partial += tl.sum(tl.reshape(products, [BN, BK // GROUP, GROUP]), axis=2)
        y = tl.sum(partial, axis=1)  # [BN]
        where = t * N + rows.to(tl.int64)
        inside = rows < height
        if HAS_BIAS:
            y += bias
        if HAS_RESIDUAL:
            y += tl.load(residual_ptr + where, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + where, y.to(out_ptr.dtype.element_ty), mask=inside)
