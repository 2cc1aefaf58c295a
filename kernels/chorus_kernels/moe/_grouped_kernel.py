"""Device code of the mixture of experts for many tokens: slots sorted by expert, tiles of BLOCK_M slots.

Tensor cores get the weights as their left operand, [rows, K] x [K, slots], so that a lane's words become its operand's
registers without an exchange. The right operand's K is in the order of those registers: activations are stored in
fragment order, which within a block of 32 columns permutes the bits (t, j % 2, upper, p) of a column's number
8 t + 4 (j % 2) + 2 upper + p to (j % 2, upper, t, p).
"""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import INTERPRETED, dot, rounded
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous
from chorus_kernels.moe._activation import swiglu

_NIBBLES: tl.constexpr = tl.constexpr(0x81C081C0 - (1 << 32))
_SIGNS: tl.constexpr = tl.constexpr(0x80008000 - (1 << 32))
_UPPER_HALF: tl.constexpr = tl.constexpr(-65536)


@triton.jit
def _scaled(pairs, factors):
    """Products of two bfloat16 each, held in int32."""
    if INTERPRETED:
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
def _finished(acc):
    """acc, once the products that it sums are done.

    wgmma reads its left operand from registers while the warp goes on. The compiler's pipeline would leave up to three
    products unfinished at the end of a loop's pass, and the next pass would write their registers. A use of the sums,
    even by no instruction, makes it wait.
    """
    if INTERPRETED:
        return acc
    else:
        return tl.inline_asm_elementwise("// $0", "=f,0", [acc], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _weights(words, scales, TILES: tl.constexpr, STEPS: tl.constexpr):
    """Words int32 [TILES, STEPS, 128] and scales int32 [TILES, STEPS, 8, 1 or 4] to weights bfloat16
    [16 TILES, 64 STEPS]. Rows are (tile, half, g), columns (step, block, j % 2, upper, t, p).
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
    return tl.reshape(tl.permute(values, 0, 6, 2, 1, 4, 5, 7, 3, 8), TILES * 16, STEPS * 64)


@triton.jit(do_not_specialize=["num_slots", "num_tiles"])
def prepare_kernel(
    x_ptr, experts_ptr, order_ptr, tiles_ptr, fragments_ptr, num_slots, first_expert, num_experts, num_tiles,
    HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr, BLOCK_H: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Sorts slots by expert, and stores x in fragment order. Grid: (E + T); the first E programs sort."""
    wait_for_previous(DEPENDENT)
    let_next_begin(DEPENDENT)
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
        acc = _finished(dot(_weights(words, scales, ROWS, BLOCK_S), x, acc))
    return acc


@triton.jit
def _is_half(count, BLOCK_M: tl.constexpr):
    """Whether a tile can do with half of its places, as an expert's last one often can."""
    # Not below the least that Triton multiplies with.
    return count * 2 <= BLOCK_M if BLOCK_M > 16 else False


@triton.jit
def _gate_up_tile(
    x_ptr, order_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, expert, place, count, alpha, limit,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """At most BLOCK_M of an expert's places, `count` from `place`, by a block of rows."""
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
    let_next_begin(DEPENDENT)
    r = tl.arange(0, BLOCK_N)
    n = row * 16 + r // 16 * 16 + r % 8 * 2 + r // 8 % 2
    bias = tl.load(bias_ptr + expert * (2 * INNER) + n, mask=n < 2 * INNER, other=0.0).to(tl.float32)
    acc = acc * tl.load(units_ptr + expert) + bias[:, None]
    acc = tl.permute(tl.reshape(acc, BLOCK_N // 16, 2, 8, BLOCK_M), 0, 2, 3, 1)
    gate, up = tl.split(acc)  # tile, g, m
    out = rounded(swiglu(gate, up, alpha, limit), tl.bfloat16)
    out = tl.reshape(out, BLOCK_N // 64, 4, 2, 2, 2, BLOCK_M)  # block, t, j % 2, upper, p, m
    out = tl.reshape(tl.permute(out, 0, 2, 3, 1, 4, 5), BLOCK_N // 2, BLOCK_M)
    i = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    to = out_ptr + (place + m).to(tl.int64)[None, :] * WIDTH + i[:, None]
    tl.store(to, out, mask=(m < count)[None, :] & (i < WIDTH)[:, None])


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_gate_up_kernel(
    x_ptr, order_ptr, tiles_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, num_tiles, alpha, limit,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[place] = swiglu(gate_up x[token] + bias) for places in sorted order: bfloat16 [T k, INNER up to whole steps],
    in fragment order, zeros beyond INNER. Grid: (blocks of BLOCK_N / 2 outputs, tiles)."""
    wait_for_previous(DEPENDENT)
    tile = tl.program_id(1)
    expert = tl.load(tiles_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(tiles_ptr + num_tiles + tile)
    count = tl.load(tiles_ptr + 2 * num_tiles + tile)
    if _is_half(count, BLOCK_M):
        _gate_up_tile(
            x_ptr, order_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, expert, place, count, alpha, limit,
            HIDDEN, INNER, TOP_K, BLOCK_N, BLOCK_M // 2, BLOCK_S, DEPENDENT,
        )  # fmt: skip
    else:
        _gate_up_tile(
            x_ptr, order_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, expert, place, count, alpha, limit,
            HIDDEN, INNER, TOP_K, BLOCK_N, BLOCK_M, BLOCK_S, DEPENDENT,
        )  # fmt: skip


@triton.jit
def _down_tile(
    hidden_ptr, order_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, expert, place, count,
    HIDDEN: tl.constexpr, INNER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """At most BLOCK_M of an expert's places, `count` from `place`, by a block of rows."""
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
    let_next_begin(DEPENDENT)
    acc = tl.permute(tl.reshape(acc, BLOCK_N // 16, 2, 8, BLOCK_M), 0, 2, 1, 3)
    acc = tl.reshape(acc, BLOCK_N, BLOCK_M)
    n = row * 16 + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + expert * HIDDEN + n, mask=n < HIDDEN, other=0.0).to(tl.float32)
    out = acc * tl.load(units_ptr + expert) + bias[:, None]
    slots = tl.load(order_ptr + places)
    to = out_ptr + slots.to(tl.int64)[None, :] * HIDDEN + n[:, None]
    tl.store(to, rounded(out, out_ptr.dtype.element_ty), mask=(m < count)[None, :] & (n < HIDDEN)[:, None])


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_down_kernel(
    hidden_ptr, order_ptr, tiles_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, num_tiles,
    HIDDEN: tl.constexpr, INNER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[slot] = down hidden[place] + bias, of out's dtype [T k, HIDDEN]. Grid: (blocks of BLOCK_N rows, tiles)."""
    wait_for_previous(DEPENDENT)
    tile = tl.program_id(1)
    expert = tl.load(tiles_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    place = tl.load(tiles_ptr + num_tiles + tile)
    count = tl.load(tiles_ptr + 2 * num_tiles + tile)
    if _is_half(count, BLOCK_M):
        _down_tile(
            hidden_ptr, order_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, expert, place, count,
            HIDDEN, INNER, BLOCK_N, BLOCK_M // 2, BLOCK_S, DEPENDENT,
        )  # fmt: skip
    else:
        _down_tile(
            hidden_ptr, order_ptr, words_ptr, scales_ptr, units_ptr, bias_ptr, out_ptr, expert, place, count,
            HIDDEN, INNER, BLOCK_N, BLOCK_M, BLOCK_S, DEPENDENT,
        )  # fmt: skip
