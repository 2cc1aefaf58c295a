"""Device code of down for few tokens with the sum over a token's experts in it.

A program has 16 rows of all of one token's experts. Each of its warps takes one expert and a part of K, in the layouts
of `_decode_kernel`; all columns of its tensor core tile are the same token's. What the warps have is added up in an
order that depends on nothing.
"""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import dot, rounded
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous
from chorus_kernels.moe._decode_kernel import EXPONENT, STREAMED, SUM_SCALE, registers

PARTS: tl.constexpr = tl.constexpr(2)


@triton.jit
def _load_quad(words_ptrs, scales_ptrs, first, quad, STEPS: tl.constexpr, WHOLE: tl.constexpr):
    """Four steps of each warp's tile from `quad` of its part, whose first step is `first`: words, four [32, W, 4], and
    scales [32, W, 4]; zeros past the end. WHOLE: whether no warp gets there."""
    words = ()
    for u in tl.static_range(4):
        at = words_ptrs + (quad * 4 + u) * 128
        if WHOLE:
            step = tl.load(at, eviction_policy=STREAMED)
        else:
            step = tl.load(at, mask=first + (quad * 4 + u) < STEPS, other=0, eviction_policy=STREAMED)
        words = words + (step,)
    at = scales_ptrs + quad * 32
    if WHOLE:
        scales = tl.load(at, eviction_policy=STREAMED)
    else:
        scales = tl.load(at, mask=first + quad * 4 < STEPS, other=0, eviction_policy=STREAMED)
    return words, scales


@triton.jit
def _load_block(x_ptrs, column, K: tl.constexpr, WHOLE: tl.constexpr):
    # Past the end, the last block again: it meets weights of zero.
    begin = column if WHOLE else tl.minimum(column, K - 32)
    return tl.load(x_ptrs + (begin + tl.arange(0, 32)[None, None, :]))


@triton.jit
def _load_columns(x_ptrs, column, K: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr):
    """A step's x in all 8 columns: [(block, W), 32, 8], K in the order of `_operand`."""
    x = tl.join(_load_block(x_ptrs, column, K, WHOLE), _load_block(x_ptrs, column + 32, K, WHOLE))  # n, W, 32, block
    x = tl.reshape(x, 8, W, 4, 2, 2, 2, 2)  # n, warp, t, j % 2, upper, p, block
    return tl.reshape(tl.permute(x, 6, 1, 4, 2, 3, 5, 0), 2 * W, 32, 8)


@triton.jit
def _operand(words, W: tl.constexpr):
    """Words int32 [32, W, 4] to bfloat16 [(block, W), 16, 32]. Rows are (half, g), columns (upper, t, j % 2, p)."""
    values = registers(tl.reshape(words, 8, 4, W, 2, 2))  # g, t, warp, block, j % 2, half, upper, p
    return tl.reshape(tl.permute(values, 3, 2, 5, 0, 6, 1, 4, 7), 2 * W, 16, 32)


@triton.jit
def _add_step(acc, words, scales, x, W: tl.constexpr):
    """acc [W, half, g, t], the same for each t, plus a step's weights times x."""
    sums = dot(_operand(words, W), x, tl.zeros([2 * W, 16, 8], tl.float32))
    sums, _ = tl.split(tl.reshape(sums, 2, W, 2, 8, 4, 2))  # block, warp, half, g, t
    first, second = tl.split(tl.permute(sums, 1, 2, 3, 4, 0))
    scales = tl.reshape(scales, 8, 4, W)  # g, t, warp
    of_first = tl.join((scales << 23) & EXPONENT, (scales << 15) & EXPONENT)  # g, t, warp, half
    of_second = tl.join((scales << 7) & EXPONENT, (scales >> 1) & EXPONENT)
    of_first = tl.permute(of_first, 2, 3, 0, 1).to(tl.float32, bitcast=True)
    of_second = tl.permute(of_second, 2, 3, 0, 1).to(tl.float32, bitcast=True)
    return (acc + first * of_first) + second * of_second


@triton.jit
def _add_quad(acc, words, scales, x_ptrs, column, K: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr):
    x0 = _load_columns(x_ptrs, column, K, W, WHOLE)
    x1 = _load_columns(x_ptrs, column + 64, K, W, WHOLE)
    x2 = _load_columns(x_ptrs, column + 128, K, W, WHOLE)
    x3 = _load_columns(x_ptrs, column + 192, K, W, WHOLE)
    even, odd = tl.split(tl.reshape(scales, 32, W, 2, 2))
    s0, s2 = tl.split(even)
    s1, s3 = tl.split(odd)
    acc = _add_step(acc, words[0], s0, x0, W)
    acc = _add_step(acc, words[1], s1, x1, W)
    acc = _add_step(acc, words[2], s2, x2, W)
    return _add_step(acc, words[3], s3, x3, W)


@triton.jit
def decode_down_sum_kernel(
    hidden_ptr, experts_ptr, shares_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, residual_ptr, out_ptr,
    first_expert, num_experts,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[t] = residual[t] + sum over k of shares[t, k] (down hidden[t, k] + bias) of hidden_ptr's 2^64 hidden: [T,
    HIDDEN]; of other shards' slots nothing is used. Grid: (T, tiles of 16 rows).

    To be launched after `decode_gate_up_kernel`: with DEPENDENT, the choice of experts, the shares and the first
    weights are read before that has ended. Its programs let this one begin when theirs were there.
    """
    # The next kernel reads weights at most before it waits.
    let_next_begin(DEPENDENT)
    W: tl.constexpr = BLOCK_K * PARTS
    STEPS: tl.constexpr = (INNER + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    PART: tl.constexpr = (QUADS + PARTS - 1) // PARTS
    # The first quad that isn't whole in the last part.
    WHOLE: tl.constexpr = INNER // 256 - (PARTS - 1) * PART
    TILES: tl.constexpr = (HIDDEN + 15) // 16
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    warp = tl.arange(0, W)[None, :, None]
    k, part = warp % BLOCK_K, warp // BLOCK_K
    slot = token * TOP_K + tl.minimum(k, TOP_K - 1)
    expert = tl.load(experts_ptr + slot) - first_expert  # [1, W, 1]
    mine = (k < TOP_K) & (expert >= 0) & (expert < num_experts)
    expert = tl.where(mine, expert, 0).to(tl.int64)
    first = part * (PART * 4)
    row = expert * TILES + tile
    lane, word = tl.arange(0, 32)[:, None, None], tl.arange(0, 4)[None, None, :]
    words_ptrs = words_ptr + (row * STEPS + first) * 128 + (lane * 4 + word)
    # All four lanes t of a row g take the same 16 bytes.
    scales_ptrs = scales_ptr + (row * QUADS + part * PART) * 32 + (lane // 4 * 4 + word)
    words0, scales0 = _load_quad(words_ptrs, scales_ptrs, first, 0, STEPS, WHOLE > 0)
    words1, scales1 = _load_quad(words_ptrs, scales_ptrs, first, 1, STEPS, WHOLE > 1)
    share = tl.where(mine, tl.load(shares_ptr + slot), 0.0)
    unit = tl.load(units_ptr + expert) * SUM_SCALE
    n = tile * 16 + 2 * tl.arange(0, 8)[None, None, :] + tl.arange(0, 2)[:, None, None]  # half, 1, g
    # Once for all parts.
    own = tl.permute(mine & (part == 0), 2, 1, 0)
    bias = tl.load(
        bias_ptr + tl.permute(expert, 2, 1, 0) * HIDDEN + n, mask=own & (n < HIDDEN), other=0.0
    )  # half, W, g
    bias = tl.permute(bias.to(tl.float32), 1, 0, 2)
    wait_for_previous(DEPENDENT)
    x_ptrs = hidden_ptr + slot * INNER + tl.zeros([8, 1, 1], tl.int32)
    acc = tl.zeros([W, 2, 8, 4], tl.float32)
    # Loads stay where they are without barriers, which would make warps wait for one another.
    for quad in tl.static_range(0, PART, 2):
        acc = _add_quad(acc, words0, scales0, x_ptrs, first * 64 + quad * 256, INNER, W, quad < WHOLE)
        if quad + 2 < PART:
            words0, scales0 = _load_quad(words_ptrs, scales_ptrs, first, quad + 2, STEPS, quad + 2 < WHOLE)
        if quad + 1 < PART:
            acc = _add_quad(acc, words1, scales1, x_ptrs, first * 64 + quad * 256 + 256, INNER, W, quad + 1 < WHOLE)
            if quad + 3 < PART:
                words1, scales1 = _load_quad(words_ptrs, scales_ptrs, first, quad + 3, STEPS, quad + 3 < WHOLE)
    unit, share, mine = tl.reshape(unit, W, 1, 1), tl.reshape(share, W, 1, 1), tl.reshape(mine, W, 1, 1)
    acc = acc * unit[:, :, :, None] + bias[:, :, :, None]
    sums = tl.sum(tl.where(mine[:, :, :, None], acc * share[:, :, :, None], 0.0), 0)  # half, g, t
    t = tl.arange(0, 4)[None, None, :]
    n = tile * 16 + 2 * tl.arange(0, 8)[None, :, None] + tl.arange(0, 2)[:, None, None]
    inside = (n < HIDDEN) & (t == 0)
    at = token * HIDDEN + n + 0 * t
    sums += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, rounded(sums, out_ptr.dtype.element_ty), mask=inside)
