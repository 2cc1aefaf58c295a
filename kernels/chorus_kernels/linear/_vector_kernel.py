"""Device code of the dense product for one or two tokens, whose time is that of reading the weight.

A program has a few rows of the weight, all of K of them on its way at once, and multiplies without tensor cores, which
would have nothing to share. It norms the tokens itself, where they are to be normed: reading them again is cheaper than
a launch.
"""

import triton
import triton.language as tl

from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous

# Weights are read once, and leave the caches to the tokens.
_STREAMED: tl.constexpr = tl.constexpr("evict_first")
# Neighbouring columns of a lane: 16 bytes.
_LANE: tl.constexpr = tl.constexpr(8)


@triton.jit
def _load(ptrs, column, K: tl.constexpr, BLOCK: tl.constexpr, EVICTION: tl.constexpr):
    """BLOCK columns from `column`, zeros past the end: ptrs of the first ones, [BLOCK] or [R, BLOCK]."""
    if column + BLOCK <= K:
        block = tl.load(ptrs + column, eviction_policy=EVICTION)
    else:
        inside = column + tl.arange(0, BLOCK) < K
        if len(ptrs.shape) == 2:
            inside = inside[None, :]
        block = tl.load(ptrs + column, mask=inside, other=0.0, eviction_policy=EVICTION)
    return block


@triton.jit
def _load_tokens(ptrs, column, K: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    tokens = ()
    for t in tl.static_range(TOKENS):
        tokens = tokens + (_load(ptrs + t * K, column, K, BLOCK, ""),)
    return tokens


@triton.jit
def vector_kernel(
    x_ptr,  # [TOKENS, K]
    norm_ptr,  # [K], with HAS_NORM
    weight_ptr,  # [N, K]
    bias_ptr,  # [N], with HAS_BIAS
    residual_ptr,  # [TOKENS, N], with HAS_RESIDUAL
    out_ptr,  # [TOKENS, N]
    N,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    EPS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out = RMSNorm(x) W^T + bias + residual. Before it waits, AHEAD blocks of the weight are on their way."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    # Rows past the end are the last one again: what comes of them is not stored.
    w_ptrs = weight_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K + columns[None, :]
    weights = ()
    for begin in tl.static_range(0, K, BLOCK):
        if begin < AHEAD * BLOCK:
            weights = weights + (_load(w_ptrs, begin, K, BLOCK, _STREAMED),)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    wait_for_previous(DEPENDENT)
    tokens = _load_tokens(x_ptr + columns, 0, K, TOKENS, BLOCK)
    for begin in tl.static_range(0, K, BLOCK):
        if begin >= AHEAD * BLOCK:
            weights = weights + (_load(w_ptrs, begin, K, BLOCK, _STREAMED),)
    sums, squares = (), ()
    for _ in tl.static_range(TOKENS):
        sums = sums + (tl.zeros([ROWS, BLOCK // _LANE], tl.float32),)
        squares = squares + (tl.zeros([BLOCK], tl.float32),)
    for begin in tl.static_range(0, K, BLOCK):
        if begin > 0:
            tokens = _load_tokens(x_ptr + columns, begin, K, TOKENS, BLOCK)
        weight = weights[begin // BLOCK].to(tl.float32)
        if HAS_NORM:
            norm = _load(norm_ptr + columns, begin, K, BLOCK, "").to(tl.float32)
        next_sums, next_squares = (), ()
        for t in tl.static_range(TOKENS):
            x = tokens[t].to(tl.float32)
            if HAS_NORM:
                next_squares = next_squares + (squares[t] + x * x,)
                x *= norm
            else:
                next_squares = squares
            products = tl.reshape(weight * x[None, :], ROWS, BLOCK // _LANE, _LANE)
            next_sums = next_sums + (sums[t] + tl.sum(products, 2),)
        sums, squares = next_sums, next_squares
    let_next_begin(DEPENDENT)
    for t in tl.static_range(TOKENS):
        y = tl.sum(sums[t], 1)  # [ROWS]
        if HAS_NORM:
            y *= tl.rsqrt(tl.sum(squares[t], 0) / K + EPS)
        if HAS_BIAS:
            y += bias
        if HAS_RESIDUAL:
            y += tl.load(residual_ptr + t * N + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out_ptr + t * N + n, y.to(out_ptr.dtype.element_ty), mask=n < N)
