"""Device code of the mixture of experts. `layout.py` tells how matrices are kept, `op.py` what each kernel computes.

Both matrix paths give tensor cores the weights as their left operand, [rows, K] x [K, tokens], so that a lane's words
become its operand registers without an exchange. The right operand's K is in the order of those registers: within a
block of 32 columns, the bits (j % 2, t, upper, p) of a column's number 8 t + 4 (j % 2) + 2 upper + p are permuted to
what the compiler's layouts want. Decoding permutes registers after a wide load; the grouped path reads activations
that are stored permuted ("fragment order"): (j % 2, upper, t, p).
"""

import triton
import triton.language as tl

# The interpreter has neither inline assembly nor bfloat16 arithmetic.
_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)
_NIBBLES: tl.constexpr = tl.constexpr(0x81C081C0 - (1 << 32))
_SIGNS: tl.constexpr = tl.constexpr(0x80008000 - (1 << 32))
_UPPER_HALF: tl.constexpr = tl.constexpr(-65536)
# The columns of the smallest tensor core tile: tokens that decode together.
_COLUMNS: tl.constexpr = tl.constexpr(8)


# No kernel is compiled for a number of tokens, slots or tiles, which differ from step to step.
@triton.jit(do_not_specialize=["num_tokens"])
def route_kernel(
    logits_ptr, experts_ptr, weights_ptr, num_tokens, num_experts,
    TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The TOP_K largest of each row, lowest number first among equals, and a softmax over them. Grid: (T / BLOCK_T)."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    inside = (t < num_tokens)[:, None] & (e < num_experts)[None, :]
    at = t.to(tl.int64)[:, None] * num_experts + e[None, :]
    logits = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)  # [BT, BE]
    broken = tl.max((logits != logits).to(tl.int32), 1) > 0  # [BT]
    # Without NaN each step below finds an expert that is there and not yet taken, whatever the row holds.
    logits = tl.where(logits != logits, float("-inf"), logits)
    taken = tl.broadcast_to((e >= num_experts)[None, :], BLOCK_T, BLOCK_E)
    chosen = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    values = tl.full([BLOCK_T, BLOCK_K], float("-inf"), tl.float32)
    for i in tl.static_range(TOP_K):
        largest = tl.max(tl.where(taken, float("-inf"), logits), 1)  # [BT]
        candidates = (logits == largest[:, None]) & (taken == 0)
        expert = tl.min(tl.where(candidates, e[None, :], BLOCK_E), 1)  # [BT]
        taken = taken | (e[None, :] == expert[:, None])
        chosen = tl.where((k == i)[None, :], expert[:, None], chosen)
        values = tl.where((k == i)[None, :], largest[:, None], values)
    shares = tl.exp(values - tl.max(values, 1)[:, None])
    shares = tl.where((k < TOP_K)[None, :], shares, 0.0)
    shares = shares / tl.sum(shares, 1)[:, None]
    shares = tl.where(broken[:, None], float("nan"), shares)
    to = t.to(tl.int64)[:, None] * TOP_K + k[None, :]
    mask = (t < num_tokens)[:, None] & (k < TOP_K)[None, :]
    tl.store(experts_ptr + to, chosen, mask=mask)
    tl.store(weights_ptr + to, shares, mask=mask)


@triton.jit
def _scaled(pairs, factors):
    """Products of two bfloat16 each, held in int32."""
    if _INTERPRETED:
        low = (pairs << 16).to(tl.float32, bitcast=True) * (factors << 16).to(tl.float32, bitcast=True)
        high = (pairs & _UPPER_HALF).to(tl.float32, bitcast=True) * (factors & _UPPER_HALF).to(tl.float32, bitcast=True)
        product = ((low.to(tl.int32, bitcast=True) >> 16) & 0xFFFF) | (high.to(tl.int32, bitcast=True) & _UPPER_HALF)
    else:
        # An fma with -0 is the product; unlike mul.bf16x2 it exists before sm_90.
        product = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;",
            "=r,r,r,r",
            [pairs, factors, _SIGNS],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return product


@triton.jit
def _dot(a, b, acc):
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def _rounded(x, DTYPE: tl.constexpr):
    """float32 to DTYPE, to the nearest, ties to even."""
    if _INTERPRETED and tl.bfloat16 == DTYPE:
        # Its own conversion cuts off.
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        y = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(DTYPE)
    return y


@triton.jit
def _weights(words, scales, TILES: tl.constexpr, STEPS: tl.constexpr, WIDE: tl.constexpr):
    """Words int32 [TILES, STEPS, 128] and scales int32 [TILES, STEPS, 8, 1 or 4] to weights bfloat16
    [16 TILES, 64 STEPS]. Rows are (tile, half, g), columns (step, block, j % 2, upper, t, p), or
    (step, block, upper, t, j % 2, p) if WIDE.
    """
    words = tl.reshape(words, TILES, STEPS, 8, 4, 2, 2)  # tile, step, g, t, block, j % 2
    block_shift = tl.arange(0, 2) * 16
    exponents = scales[:, :, :, :, None, None] >> block_shift[None, None, None, None, :, None]
    # An exponent byte into the exponent fields of two bfloat16.
    even = (exponents & 0xFF) * 0x00800080
    odd = ((exponents >> 8) & 0xFF) * 0x00800080
    w0 = _scaled(words & _NIBBLES, even)
    w1 = _scaled((words << 3) & _NIBBLES, odd)
    w2 = _scaled((words << 6) & _NIBBLES, even)
    w3 = _scaled(((words << 1) & _SIGNS) | ((words >> 5) & 0x01400140) | ((words >> 3) & 0x00800080), odd)
    pairs = tl.join(tl.join(w0, w1), tl.join(w2, w3))  # ..., half, upper
    low = (pairs & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    values = tl.join(low, high)  # tile, step, g, t, block, j % 2, half, upper, p
    values = tl.permute(values, 0, 6, 2, 1, 4, 7, 3, 5, 8) if WIDE else tl.permute(values, 0, 6, 2, 1, 4, 5, 7, 3, 8)
    return tl.reshape(values, TILES * 16, STEPS * 64)


@triton.jit
def _swiglu(gate, up, alpha, limit):
    # Clamping must not hide NaN.
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
    return gate / (1.0 + tl.exp(-alpha * gate)) * (up + 1.0)


# ---- Few tokens: a program is one warp with 16 rows of a slot's expert and all tokens that chose it. ----


@triton.jit
def _decode_expert(experts_ptr, slot, num_tokens, first_expert, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The slot's expert, and for each token the slot in which it chose that expert, or -1. The expert is -1 if an
    earlier slot has it too: that slot's programs do the work."""
    n = tl.arange(0, _COLUMNS)
    k = tl.arange(0, BLOCK_K)
    slots = n[:, None] * TOP_K + k[None, :]
    there = (n < num_tokens)[:, None] & (k < TOP_K)[None, :]
    experts = tl.load(experts_ptr + slots, mask=there, other=-1)  # [8, BK]
    expert = tl.load(experts_ptr + slot)
    same = there & (experts == expert)
    chosen = tl.max(tl.where(same, slots, -1), 1)  # [8]
    first = tl.min(tl.min(tl.where(same, slots, _COLUMNS * BLOCK_K), 1), 0)
    return tl.where(first == slot, expert - first_expert, -1), chosen


@triton.jit
def _load_step(words_ptr, scales_ptr, tile, step, end, STEPS: tl.constexpr, QUADS: tl.constexpr):
    """Four steps of a tile from `step`, a multiple of 4: words [1, 4, 128], scales [1, 4, 8, 4]; zeros from `end`."""
    u = tl.arange(0, 4)
    inside = (step + u < end)[None, :, None]
    at = (tile * STEPS + step) * 128
    words = tl.load(words_ptr + at + u[None, :, None] * 128 + tl.arange(0, 128)[None, None, :], mask=inside, other=0)
    # All four lanes t of a row g take the same 16 bytes.
    g = tl.arange(0, 32) // 4
    at = (tile * QUADS + tl.minimum(step // 4, QUADS - 1)) * 32
    scales = tl.load(scales_ptr + at + g[:, None] * 4 + u[None, :])  # [32, 4]
    scales = tl.permute(tl.reshape(scales, 1, 8, 4, 4), 0, 3, 1, 2)  # 1, u, g, t
    return words, scales


@triton.jit
def _load_block(x_ptrs, there, column, K: tl.constexpr):
    c = tl.arange(0, 32)
    return tl.load(x_ptrs[:, None] + column + c[None, :], mask=there[:, None] & (c[None, :] < K - column), other=0.0)


@triton.jit
def _load_columns(x_ptrs, there, begin, K: tl.constexpr):
    """256 rows from `begin` of 8 columns of x, as WIDE weights have theirs: [256, 8].

    A lane (n, t) reads 8 neighbours of a block. Block by block, as it is then clear to every version of the compiler
    which lanes go where.
    """
    b0 = tl.join(_load_block(x_ptrs, there, begin, K), _load_block(x_ptrs, there, begin + 32, K))
    b1 = tl.join(_load_block(x_ptrs, there, begin + 64, K), _load_block(x_ptrs, there, begin + 96, K))
    b2 = tl.join(_load_block(x_ptrs, there, begin + 128, K), _load_block(x_ptrs, there, begin + 160, K))
    b3 = tl.join(_load_block(x_ptrs, there, begin + 192, K), _load_block(x_ptrs, there, begin + 224, K))
    x = tl.join(tl.join(b0, b2), tl.join(b1, b3))  # n, 32, block, step // 2, step % 2
    x = tl.reshape(x, _COLUMNS, 4, 2, 2, 2, 2, 2, 2)  # n, t, j % 2, upper, p, block, step // 2, step % 2
    return tl.reshape(tl.permute(x, 6, 7, 5, 3, 1, 2, 4, 0), 256, _COLUMNS)


@triton.jit
def _decode_tile(
    words_ptr, scales_ptr, x_ptrs, there, tile, begin,
    K: tl.constexpr, STEPS: tl.constexpr, QUADS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A tile's rows (half, g) times 8 columns of x, over PART steps from `begin`: float32 [16, 8].

    x_ptrs: [8] pointers to the columns' values; there: [8], whether a column is real.
    """
    end = tl.minimum(begin + PART, STEPS)
    acc = tl.zeros([16, _COLUMNS], tl.float32)
    words, scales = _load_step(words_ptr, scales_ptr, tile, begin, end, STEPS, QUADS)
    for done in range(0, PART, 4):
        step = begin + done
        # Ahead of use; zeros after the last.
        next_words, next_scales = _load_step(words_ptr, scales_ptr, tile, step + 4, end, STEPS, QUADS)
        # No load crosses a barrier: the assembler would move those above down to their first use.
        tl.debug_barrier()
        x = _load_columns(x_ptrs, there, step * 64, K)
        acc = _dot(_weights(words, scales, 1, 4, True), x, acc)
        words = next_words
        scales = next_scales
    return acc


@triton.jit
def _halves(acc):
    """Rows (half, g) of a tile's sums [16, 8], apart: two [8, 8]."""
    return tl.split(tl.permute(tl.reshape(acc, 2, 8, _COLUMNS), 1, 2, 0))


@triton.jit(do_not_specialize=["num_tokens"])
def decode_gate_up_kernel(
    x_ptr, experts_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr,
    num_tokens, first_expert, num_experts, alpha, limit,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[slot] = swiglu(gate_up x + bias), bfloat16 [T k, INNER]. Grid: (tiles of 8 outputs, slots)."""
    tile = tl.program_id(0)
    expert, slots = _decode_expert(experts_ptr, tl.program_id(1), num_tokens, first_expert, TOP_K, BLOCK_K)
    if (expert < 0) | (expert >= num_experts):
        return
    STEPS: tl.constexpr = (HIDDEN + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    TILES: tl.constexpr = INNER // 8
    i = tile * 8 + tl.arange(0, 8)
    bias_at = bias_ptr + expert.to(tl.int64) * (2 * INNER) + 2 * i
    gate_bias = tl.load(bias_at).to(tl.float32)
    up_bias = tl.load(bias_at + 1).to(tl.float32)
    unit = tl.load(units_ptr + expert)
    x_ptrs = x_ptr + tl.arange(0, _COLUMNS).to(tl.int64) * HIDDEN
    row = expert.to(tl.int64) * TILES + tile
    acc = _decode_tile(words_ptr, scales_ptr, x_ptrs, slots >= 0, row, 0, HIDDEN, STEPS, QUADS, STEPS)
    gate, up = _halves(acc)  # [8, 8]
    out = _swiglu(gate * unit + gate_bias[:, None], up * unit + up_bias[:, None], alpha, limit)
    to = out_ptr + slots.to(tl.int64)[None, :] * INNER + i[:, None]
    tl.store(to, _rounded(out, tl.bfloat16), mask=(slots >= 0)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def decode_down_kernel(
    hidden_ptr, experts_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr,
    num_tokens, first_expert, num_experts,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out[slot, split] = down hidden[slot] over the split's columns, plus bias in split 0: float32
    [T k, SPLITS, HIDDEN]. Grid: (tiles of 16 rows, slots, SPLITS)."""
    tile = tl.program_id(0)
    split = tl.program_id(2)
    expert, slots = _decode_expert(experts_ptr, tl.program_id(1), num_tokens, first_expert, TOP_K, BLOCK_K)
    if (expert < 0) | (expert >= num_experts):
        return
    STEPS: tl.constexpr = (INNER + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    TILES: tl.constexpr = (HIDDEN + 15) // 16
    PART: tl.constexpr = (QUADS + SPLITS - 1) // SPLITS * 4
    n = tile * 16 + 2 * tl.arange(0, 8)
    bias_at = bias_ptr + expert.to(tl.int64) * HIDDEN + n
    biased = tl.where(split == 0, HIDDEN, 0)
    even_bias = tl.load(bias_at, mask=n < biased, other=0.0).to(tl.float32)
    odd_bias = tl.load(bias_at + 1, mask=n + 1 < biased, other=0.0).to(tl.float32)
    unit = tl.load(units_ptr + expert)
    x_ptrs = hidden_ptr + tl.maximum(slots, 0).to(tl.int64) * INNER
    row = expert.to(tl.int64) * TILES + tile
    acc = _decode_tile(words_ptr, scales_ptr, x_ptrs, slots >= 0, row, split * PART, INNER, STEPS, QUADS, PART)
    even, odd = _halves(acc)  # [8, 8]
    to = out_ptr + (slots.to(tl.int64) * SPLITS + split)[None, :] * HIDDEN + n[:, None]
    real = (slots >= 0)[None, :]
    tl.store(to, even * unit + even_bias[:, None], mask=real & (n < HIDDEN)[:, None])
    tl.store(to + 1, odd * unit + odd_bias[:, None], mask=real & (n + 1 < HIDDEN)[:, None])


# ---- Many tokens: slots sorted by expert, tiles of BLOCK_M slots. ----


@triton.jit(do_not_specialize=["num_slots", "num_tiles"])
def prepare_kernel(
    x_ptr, experts_ptr, order_ptr, tiles_ptr, fragments_ptr, num_slots, first_expert, num_experts, num_tiles,
    HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Sorts slots by expert, and stores x in fragment order. Grid: (E + T); the first E programs sort."""
    program = tl.program_id(0)
    if program < num_experts:
        _sort_slots(
            experts_ptr, order_ptr, tiles_ptr, program, num_slots, first_expert, num_experts, num_tiles,
            BLOCK_M, BLOCK_E, CHUNK,
        )  # fmt: skip
    else:
        token = (program - num_experts).to(tl.int64)
        WIDTH: tl.constexpr = (HIDDEN + 63) // 64 * 64
        for begin in range(0, WIDTH, BLOCK_H):
            to = begin + tl.arange(0, BLOCK_H)
            # (j % 2, upper, t, p) to (t, j % 2, upper, p)
            within = (to // 2 % 4) * 8 + (to // 16 % 2) * 4 + (to // 8 % 2) * 2 + to % 2
            column = to // 32 * 32 + within
            x = tl.load(x_ptr + token * HIDDEN + column, mask=column < HIDDEN, other=0.0)
            tl.store(fragments_ptr + token * WIDTH + to, x, mask=to < WIDTH)


@triton.jit
def _sort_slots(
    experts_ptr, order_ptr, tiles_ptr, expert, num_slots, first_expert, num_experts, num_tiles,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One expert's part of a stable counting sort: its slots, ascending, at their place in order[num_slots], and its
    tiles (expert, first place, slots) in the three rows of tiles[3, num_tiles]. Slots of other shards are left out; the
    last expert marks the tiles left over with an expert of -1."""
    chunk = tl.arange(0, CHUNK)
    bins = tl.arange(0, BLOCK_E)
    counts = tl.zeros([BLOCK_E], tl.int32)
    # The interpreter counts no loop to an argument; hence `while`.
    begin = 0
    while begin < num_slots:
        at = begin + chunk
        local = tl.load(experts_ptr + at, mask=at < num_slots, other=-1) - first_expert
        mine = (at < num_slots) & (local >= 0) & (local < num_experts)
        counts += tl.histogram(tl.where(mine, local, 0), BLOCK_E, mask=mine)
        begin += CHUNK
    tiles = (counts + (BLOCK_M - 1)) // BLOCK_M  # [BE]
    place = tl.sum(tl.where(bins < expert, counts, 0), 0)
    tile = tl.sum(tl.where(bins < expert, tiles, 0), 0)
    count = tl.sum(tl.where(bins == expert, counts, 0), 0)

    seen = place
    begin = 0
    while begin < num_slots:
        at = begin + chunk
        local = tl.load(experts_ptr + at, mask=at < num_slots, other=-1) - first_expert
        hit = ((at < num_slots) & (local == expert)).to(tl.int32)
        tl.store(order_ptr + seen + tl.cumsum(hit, 0) - 1, at, mask=hit > 0)
        seen += tl.sum(hit, 0)
        begin += CHUNK

    end = tile + (count + BLOCK_M - 1) // BLOCK_M
    last = tl.where(expert == num_experts - 1, num_tiles, end)
    begin = 0
    while begin < num_tiles:
        at = begin + tl.arange(0, 128)
        done = (at - tile) * BLOCK_M
        real = (at >= tile) & (at < end)
        tl.store(tiles_ptr + at, tl.where(real, expert, -1), mask=(at >= tile) & (at < last))
        tl.store(tiles_ptr + num_tiles + at, place + done, mask=real)
        tl.store(tiles_ptr + 2 * num_tiles + at, tl.minimum(count - done, BLOCK_M), mask=real)
        begin += 128


@triton.jit
def _grouped_tile(
    words_ptr, scales_ptr, x_ptrs, row, TILES, STEPS: tl.constexpr, QUADS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows (tile, half, g) of an expert times BLOCK_M columns of x: float32 [BN, BM].

    words_ptr, scales_ptr: the expert's; row: the first tile, of TILES; x_ptrs: [BM] pointers to rows of 64 STEPS values
    in fragment order.
    """
    ROWS: tl.constexpr = BLOCK_N // 16
    r = tl.minimum(row + tl.arange(0, ROWS), TILES - 1)
    inside = (row + tl.arange(0, ROWS) < TILES)[:, None, None]
    s = tl.arange(0, BLOCK_S)
    words_at = words_ptr + (r * (STEPS * 128))[:, None, None] + (s * 128)[None, :, None]
    words_at = words_at + tl.arange(0, 128)[None, None, :]  # [BN / 16, BS, 128]
    scales_at = scales_ptr + (r * (QUADS * 32))[:, None, None] + (tl.arange(0, 8) * 4)[None, :, None] + s[None, None, :]
    x_at = x_ptrs[None, :] + tl.arange(0, BLOCK_S * 64)[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(0, STEPS, BLOCK_S):
        if STEPS % BLOCK_S == 0:
            words = tl.load(words_at + step * 128, mask=inside, other=0)
            x = tl.load(x_at + step * 64)
        else:
            words = tl.load(words_at + step * 128, mask=inside & (step + s < STEPS)[None, :, None], other=0)
            here = step + tl.arange(0, BLOCK_S * 64) // 64 < STEPS
            x = tl.load(x_at + step * 64, mask=here[:, None], other=0.0)
        scales = tl.load(scales_at + step // 4 * 32 + step % 4)  # tile, g, step
        scales = tl.permute(scales, 0, 2, 1)[:, :, :, None]
        acc = _dot(_weights(words, scales, ROWS, BLOCK_S, False), x, acc)
    return acc


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_gate_up_kernel(
    x_ptr, order_ptr, tiles_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, num_tiles, alpha, limit,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """out[place] = swiglu(gate_up x[token] + bias) for places in sorted order: bfloat16 [T k, INNER up to whole steps],
    in fragment order, zeros beyond INNER. Grid: (blocks of BLOCK_N / 2 outputs, tiles)."""
    tile = tl.program_id(1)
    expert = tl.load(tiles_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(tiles_ptr + num_tiles + tile)
    count = tl.load(tiles_ptr + 2 * num_tiles + tile)
    STEPS: tl.constexpr = (HIDDEN + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    TILES: tl.constexpr = INNER // 8
    WIDTH: tl.constexpr = (INNER + 63) // 64 * 64
    m = tl.arange(0, BLOCK_M)
    # Columns beyond the tile's repeat its last: they are computed and not stored.
    token = tl.load(order_ptr + place + tl.minimum(m, count - 1)) // TOP_K
    x_ptrs = x_ptr + token.to(tl.int64) * (STEPS * 64)
    row = tl.program_id(0) * (BLOCK_N // 16)
    words_ptr += expert * (TILES * STEPS * 128)
    scales_ptr += expert * (TILES * QUADS * 32)
    acc = _grouped_tile(words_ptr, scales_ptr, x_ptrs, row, TILES, STEPS, QUADS, BLOCK_N, BLOCK_M, BLOCK_S)
    r = tl.arange(0, BLOCK_N)
    n = row * 16 + r // 16 * 16 + r % 8 * 2 + r // 8 % 2
    bias = tl.load(bias_ptr + expert * (2 * INNER) + n, mask=n < 2 * INNER, other=0.0).to(tl.float32)
    acc = acc * tl.load(units_ptr + expert) + bias[:, None]
    acc = tl.permute(tl.reshape(acc, BLOCK_N // 16, 2, 8, BLOCK_M), 0, 2, 3, 1)
    gate, up = tl.split(acc)  # tile, g, m
    out = _rounded(_swiglu(gate, up, alpha, limit), tl.bfloat16)
    out = tl.reshape(out, BLOCK_N // 64, 4, 2, 2, 2, BLOCK_M)  # block, t, j % 2, upper, p, m
    out = tl.reshape(tl.permute(out, 0, 2, 3, 1, 4, 5), BLOCK_N // 2, BLOCK_M)
    i = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    to = out_ptr + (place + m).to(tl.int64)[None, :] * WIDTH + i[:, None]
    tl.store(to, out, mask=(m < count)[None, :] & (i < WIDTH)[:, None])


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_down_kernel(
    hidden_ptr, order_ptr, tiles_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, num_tiles,
    HIDDEN: tl.constexpr, INNER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """out[slot] = down hidden[place] + bias, of out's dtype [T k, HIDDEN]. Grid: (blocks of BLOCK_N rows, tiles)."""
    tile = tl.program_id(1)
    expert = tl.load(tiles_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(tiles_ptr + num_tiles + tile)
    count = tl.load(tiles_ptr + 2 * num_tiles + tile)
    STEPS: tl.constexpr = (INNER + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    TILES: tl.constexpr = (HIDDEN + 15) // 16
    m = tl.arange(0, BLOCK_M)
    places = place + tl.minimum(m, count - 1)
    x_ptrs = hidden_ptr + places.to(tl.int64) * (STEPS * 64)
    row = tl.program_id(0) * (BLOCK_N // 16)
    words_ptr += expert * (TILES * STEPS * 128)
    scales_ptr += expert * (TILES * QUADS * 32)
    acc = _grouped_tile(words_ptr, scales_ptr, x_ptrs, row, TILES, STEPS, QUADS, BLOCK_N, BLOCK_M, BLOCK_S)
    acc = tl.permute(tl.reshape(acc, BLOCK_N // 16, 2, 8, BLOCK_M), 0, 2, 1, 3)
    acc = tl.reshape(acc, BLOCK_N, BLOCK_M)
    n = row * 16 + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + expert * HIDDEN + n, mask=n < HIDDEN, other=0.0).to(tl.float32)
    out = acc * tl.load(units_ptr + expert) + bias[:, None]
    slots = tl.load(order_ptr + places)
    to = out_ptr + slots.to(tl.int64)[None, :] * HIDDEN + n[:, None]
    tl.store(to, _rounded(out, out_ptr.dtype.element_ty), mask=(m < count)[None, :] & (n < HIDDEN)[:, None])


@triton.jit
def combine_kernel(
    rows_ptr, experts_ptr, weights_ptr, out_ptr, first_expert, num_experts,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over k, then splits, of weights[t, k] rows[t, k, split]; slots of other shards are never read.
    Grid: (T, blocks of BLOCK_H)."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros([BLOCK_H], tl.float32)
    for k in tl.static_range(TOP_K):
        slot = token * TOP_K + k
        expert = tl.load(experts_ptr + slot) - first_expert
        mine = (expert >= 0) & (expert < num_experts)
        weight = tl.where(mine, tl.load(weights_ptr + slot), 0.0)
        end = tl.where(mine, HIDDEN, 0)
        total = tl.zeros([BLOCK_H], tl.float32)
        for split in tl.static_range(SPLITS):
            at = (slot * SPLITS + split) * HIDDEN + h
            total += tl.load(rows_ptr + at, mask=h < end, other=0.0).to(tl.float32)
        acc += weight * total
    tl.store(out_ptr + token * HIDDEN + h, _rounded(acc, out_ptr.dtype.element_ty), mask=h < HIDDEN)
