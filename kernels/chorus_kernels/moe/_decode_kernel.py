"""Device code of the mixture of experts for few tokens: bound by reading the chosen experts' matrices once.

A program is one warp with 16 rows of an expert and up to 8 of the slots that chose it, the columns of one tensor core
tile. The warp's loads of weights are wide, and become the left operand's registers as they lie; the right operand is in
the same order of K. Weights enter the products as 2^-126 of what they are, subnormal and exact, and what they are
multiplied with as 2^64 of it, so that no product is subnormal. A block's scale multiplies its sum of 32 products.
"""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import dot, rounded
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous
from chorus_kernels.moe._activation import swiglu

_NIBBLES: tl.constexpr = tl.constexpr(0x81C081C0 - (1 << 32))
_SIGNS: tl.constexpr = tl.constexpr(0x80008000 - (1 << 32))
EXPONENT: tl.constexpr = tl.constexpr(0x7F800000)
# The columns of the smallest tensor core tile.
COLUMNS: tl.constexpr = tl.constexpr(8)
# Weights are read once, and leave the caches to what programs share.
STREAMED: tl.constexpr = tl.constexpr("evict_first")
# Sums are of products 2^64 times too large.
OPERAND_SCALE: tl.constexpr = tl.constexpr(2.0**64)
SUM_SCALE: tl.constexpr = tl.constexpr(2.0**-64)


@triton.jit
def chosen_slots(experts_ptr, slot, num_tokens, first_expert, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The slot's expert, and for each token the slot in which it chose that expert, or -1. The expert is -1 if an
    earlier slot has it too: that slot's programs do the work."""
    n = tl.arange(0, COLUMNS)
    k = tl.arange(0, BLOCK_K)
    slots = n[:, None] * TOP_K + k[None, :]
    there = (n < num_tokens)[:, None] & (k < TOP_K)[None, :]
    experts = tl.load(experts_ptr + slots, mask=there, other=-1)  # [8, BK]
    expert = tl.load(experts_ptr + slot)
    same = there & (experts == expert)
    chosen = tl.max(tl.where(same, slots, -1), 1)  # [8]
    first = tl.min(tl.min(tl.where(same, slots, COLUMNS * BLOCK_K), 1), 0)
    return tl.where(first == slot, expert - first_expert, -1), chosen


@triton.jit
def _load_quad(words_ptr, scales_ptr, tile, step, STEPS: tl.constexpr, QUADS: tl.constexpr):
    """Four steps of a tile from `step`, a multiple of 4: words [4, 128], scales [32, 4], the lane's row by step; zeros
    past the end."""
    u = tl.arange(0, 4)
    at = words_ptr + (tile * STEPS + step) * 128
    words = tl.load(
        at + u[:, None] * 128 + tl.arange(0, 128)[None, :],
        mask=(step + u < STEPS)[:, None],
        other=0,
        eviction_policy=STREAMED,
    )
    # All four lanes t of a row g take the same 16 bytes.
    g = tl.arange(0, 32) // 4
    at = scales_ptr + (tile * QUADS + tl.minimum(step // 4, QUADS - 1)) * 32
    return words, tl.load(at + g[:, None] * 4 + u[None, :], eviction_policy=STREAMED)


@triton.jit
def _load_block(x_ptrs, column, K: tl.constexpr):
    # Past the end, the last block again: it meets weights of zero.
    return tl.load(x_ptrs[:, None] + (tl.minimum(column, K - 32) + tl.arange(0, 32)[None, :]))


@triton.jit
def _load_columns(x_ptrs, begin, K: tl.constexpr):
    """A step of 8 columns of x: [block, 32, 8], K in the order of `_operand`. A lane (n, t) reads 8 neighbours of a
    block."""
    # Block by block, as it is then clear to every version of the compiler which lanes go where.
    x = tl.join(_load_block(x_ptrs, begin, K), _load_block(x_ptrs, begin + 32, K))  # n, 32, block
    x = tl.reshape(x, COLUMNS, 4, 2, 2, 2, 2)  # n, t, j % 2, upper, p, block
    return tl.reshape(tl.permute(x, 5, 3, 1, 2, 4, 0), 2, 32, COLUMNS)


@triton.jit
def _steps(quad, N: tl.constexpr):
    """Four [N] of [N, 4]."""
    even, odd = tl.split(tl.reshape(quad, N, 2, 2))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def registers(words):
    """Words int32, a lane's [..., block, j % 2], to bfloat16 [..., block, j % 2, half, upper, p]: weights times 2^-126
    before their scales."""
    w0 = words & _NIBBLES
    w1 = (words << 3) & _NIBBLES
    w2 = (words << 6) & _NIBBLES
    w3 = ((words << 1) & _SIGNS) | ((words >> 5) & 0x01400140) | ((words >> 3) & 0x00800080)
    pairs = tl.join(tl.join(w0, w1), tl.join(w2, w3))  # ..., half, upper
    low = (pairs & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def _operand(words):
    """Words int32 [128] to bfloat16 [block, 16, 32]. Rows are (half, g), columns (upper, t, j % 2, p)."""
    values = registers(tl.reshape(words, 8, 4, 2, 2))  # g, t, block, j % 2, half, upper, p
    return tl.reshape(tl.permute(values, 2, 4, 0, 5, 1, 3, 6), 2, 16, 32)


@triton.jit
def _add_step(acc, words, scales, x):
    """acc [half, g, t, 2], row (half, g) by column (t, 2), plus a step's weights times x."""
    sums = dot(_operand(words), x, tl.zeros([2, 16, COLUMNS], tl.float32))
    sums = tl.reshape(sums, 2, 2, 8, 4, 2)  # block, half, g, t, column % 2
    scales = tl.reshape(scales, 8, 4)
    first = tl.join((scales << 23) & EXPONENT, (scales << 15) & EXPONENT)  # g, t, half
    second = tl.join((scales << 7) & EXPONENT, (scales >> 1) & EXPONENT)
    factors = tl.permute(tl.join(first, second), 3, 2, 0, 1).to(tl.float32, bitcast=True)
    sums = tl.permute(sums * factors[:, :, :, :, None], 1, 2, 3, 4, 0)
    first, second = tl.split(sums)
    return (acc + first) + second


@triton.jit
def _add_quad(acc, words, scales, x_ptrs, begin, K: tl.constexpr):
    x0 = _load_columns(x_ptrs, begin, K)
    x1 = _load_columns(x_ptrs, begin + 64, K)
    x2 = _load_columns(x_ptrs, begin + 128, K)
    x3 = _load_columns(x_ptrs, begin + 192, K)
    w0, w1, w2, w3 = _steps(tl.trans(words), 128)
    s0, s1, s2, s3 = _steps(scales, 32)
    acc = _add_step(acc, w0, s0, x0)
    acc = _add_step(acc, w1, s1, x1)
    acc = _add_step(acc, w2, s2, x2)
    return _add_step(acc, w3, s3, x3)


@triton.jit
def load_first(words_ptr, scales_ptr, tile, STEPS: tl.constexpr, QUADS: tl.constexpr):
    """What `tile_sums` begins with: a tile's first two quads."""
    words0, scales0 = _load_quad(words_ptr, scales_ptr, tile, 0, STEPS, QUADS)
    words1, scales1 = _load_quad(words_ptr, scales_ptr, tile, 4, STEPS, QUADS)
    return words0, scales0, words1, scales1


@triton.jit
def tile_sums(
    words0, scales0, words1, scales1, words_ptr, scales_ptr, x_ptrs, tile,
    K: tl.constexpr, STEPS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """A tile's rows times 8 columns of x: two float32 [g, column], one for each half.

    x_ptrs: [8] pointers to the columns' values.
    """
    acc = tl.zeros([2, 8, 4, 2], tl.float32)
    for step in range(0, STEPS, 12):
        # Two quads ahead of use; zeros after the last. No load crosses a barrier: the assembler would move those above
        # down to their first use.
        words2, scales2 = _load_quad(words_ptr, scales_ptr, tile, step + 8, STEPS, QUADS)
        tl.debug_barrier()
        acc = _add_quad(acc, words0, scales0, x_ptrs, step * 64, K)
        words0, scales0 = _load_quad(words_ptr, scales_ptr, tile, step + 12, STEPS, QUADS)
        tl.debug_barrier()
        acc = _add_quad(acc, words1, scales1, x_ptrs, (step + 4) * 64, K)
        words1, scales1 = _load_quad(words_ptr, scales_ptr, tile, step + 16, STEPS, QUADS)
        tl.debug_barrier()
        acc = _add_quad(acc, words2, scales2, x_ptrs, (step + 8) * 64, K)
    return tl.split(tl.permute(tl.reshape(acc, 2, 8, COLUMNS), 1, 2, 0))


@triton.jit(do_not_specialize=["num_tokens"])
def decode_gate_up_kernel(
    x_ptr, experts_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr,
    num_tokens, first_expert, num_experts, alpha, limit,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[slot] = 2^64 swiglu(gate_up x + bias) of x_ptr's 2^64 x, bfloat16 [T k, INNER]. Grid: (tiles of 8 outputs,
    slots)."""
    wait_for_previous(DEPENDENT)
    # Not before the wait: the next kernel relies on what this one has waited for.
    let_next_begin(DEPENDENT)
    tile = tl.program_id(0)
    expert, slots = chosen_slots(experts_ptr, tl.program_id(1), num_tokens, first_expert, TOP_K, BLOCK_K)
    if (expert < 0) | (expert >= num_experts):
        return
    STEPS: tl.constexpr = (HIDDEN + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    TILES: tl.constexpr = INNER // 8
    i = tile * 8 + tl.arange(0, 8)
    bias_at = bias_ptr + expert.to(tl.int64) * (2 * INNER) + 2 * i
    gate_bias = tl.load(bias_at).to(tl.float32)
    up_bias = tl.load(bias_at + 1).to(tl.float32)
    unit = tl.load(units_ptr + expert) * SUM_SCALE
    # Columns without a slot repeat another.
    x_ptrs = x_ptr + (tl.where(slots < 0, tl.max(slots, 0), slots) // TOP_K).to(tl.int64) * HIDDEN
    row = expert.to(tl.int64) * TILES + tile
    w0, s0, w1, s1 = load_first(words_ptr, scales_ptr, row, STEPS, QUADS)
    gate, up = tile_sums(w0, s0, w1, s1, words_ptr, scales_ptr, x_ptrs, row, HIDDEN, STEPS, QUADS)  # [8, 8]
    out = swiglu(gate * unit + gate_bias[:, None], up * unit + up_bias[:, None], alpha, limit) * OPERAND_SCALE
    to = out_ptr + slots.to(tl.int64)[None, :] * INNER + i[:, None]
    tl.store(to, rounded(out, tl.bfloat16), mask=(slots >= 0)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def decode_down_kernel(
    hidden_ptr, experts_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr,
    num_tokens, first_expert, num_experts,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[slot] = down hidden[slot] of hidden_ptr's 2^64 hidden, plus bias: float32 [T k, HIDDEN]. Grid: (tiles of 16
    rows, slots).

    To be launched after `decode_gate_up_kernel`: with DEPENDENT, the choice of experts and the first weights are read
    before that has ended. Its programs let this one begin when theirs was there.
    """
    tile = tl.program_id(0)
    expert, slots = chosen_slots(experts_ptr, tl.program_id(1), num_tokens, first_expert, TOP_K, BLOCK_K)
    if (expert < 0) | (expert >= num_experts):
        wait_for_previous(DEPENDENT)
        return
    STEPS: tl.constexpr = (INNER + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    TILES: tl.constexpr = (HIDDEN + 15) // 16
    row = expert.to(tl.int64) * TILES + tile
    w0, s0, w1, s1 = load_first(words_ptr, scales_ptr, row, STEPS, QUADS)
    n = tile * 16 + 2 * tl.arange(0, 8)
    bias_at = bias_ptr + expert.to(tl.int64) * HIDDEN + n
    even_bias = tl.load(bias_at, mask=n < HIDDEN, other=0.0).to(tl.float32)
    odd_bias = tl.load(bias_at + 1, mask=n + 1 < HIDDEN, other=0.0).to(tl.float32)
    unit = tl.load(units_ptr + expert) * SUM_SCALE
    wait_for_previous(DEPENDENT)
    let_next_begin(DEPENDENT)
    x_ptrs = hidden_ptr + tl.where(slots < 0, tl.max(slots, 0), slots).to(tl.int64) * INNER
    even, odd = tile_sums(w0, s0, w1, s1, words_ptr, scales_ptr, x_ptrs, row, INNER, STEPS, QUADS)  # [8, 8]
    to = out_ptr + slots.to(tl.int64)[None, :] * HIDDEN + n[:, None]
    real = (slots >= 0)[None, :]
    tl.store(to, even * unit + even_bias[:, None], mask=real & (n < HIDDEN)[:, None])
    tl.store(to + 1, odd * unit + odd_bias[:, None], mask=real & (n + 1 < HIDDEN)[:, None])
