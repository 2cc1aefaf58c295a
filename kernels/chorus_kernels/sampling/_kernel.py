"""Device code of the draw: one pass over the logits in tiles, then one program a row that looks at few tiles again.

The scan keeps of each tile its largest logit and a bound of its Gumbel scores, from fast float32 noise. The draw is
branch and bound: the exact scores (noise in float64, rounded once) of the tile with the highest bound, then of the next
as long as its bound may win; mostly that is one tile. Truncation needs neither a sort nor a threshold: whether a drawn
token is kept follows from the number and the mass of the likelier ones, and these lie in the tiles whose largest logit
is above it. A token that isn't kept raises the floor to itself, and the best of what is left is drawn, until one is
kept: the same token as if the unlikely ones had been dropped first.
"""

import triton
import triton.language as tl

from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous

INF = tl.constexpr(float("inf"))
# What `approximate_gumbel` and the rounding of scores may be off, with a wide margin.
SLACK = tl.constexpr(1e-3)
# Of a digit of 8 bits.
NUM_BINS = tl.constexpr(256)


@triton.jit
def random_words(seed, position, start, ids_ptr, N, TILE: tl.constexpr, HAS_IDS: tl.constexpr):
    """Words of the columns start, start + 1, ...: uint32 [TILE]. Four neighbouring token ids share a Philox block."""
    if HAS_IDS:
        cols = start + tl.arange(0, TILE)  # [TILE]
        ids = tl.load(ids_ptr + cols, mask=cols < N, other=0)
        w0, w1, w2, w3 = tl.philox(seed, (ids >> 2).to(tl.uint32), position, 0, 0)
        lane = ids & 3
        return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    blocks = start // 4 + tl.arange(0, TILE // 4)  # [TILE / 4]
    w0, w1, w2, w3 = tl.philox(seed, blocks.to(tl.uint32), position, 0, 0)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def exact_gumbel(words):
    """-log(-log((word + 1/2) / 2^32)) in float64, rounded once: float32."""
    uniform = (words.to(tl.float64) + 0.5) * 2.0**-32
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def approximate_gumbel(words):
    """The same within 1e-4, in float32. Near u = 1 by v = 1 - u, which float32 can hold: -log(1 - v) as a series."""
    uniform = (words.to(tl.float32) + 0.5) * 2.0**-32
    v = ((0xFFFFFFFF - words).to(tl.float32) + 0.5) * 2.0**-32
    series = v * (1.0 + v * (0.5 + v * (1.0 / 3.0)))
    return -tl.log(tl.where(v < 0.0625, series, -tl.log(uniform)))


@triton.jit
def find_mask(mask_ptr, mask_rows_ptr, mask_stride, row, HAS_MASK: tl.constexpr):
    """Where a row's mask begins, and whether it has one."""
    if HAS_MASK:
        mask = tl.load(mask_rows_ptr + row)
        return mask_ptr + tl.maximum(mask, 0).to(tl.int64) * mask_stride, mask >= 0
    return mask_ptr, False


@triton.jit
def load_logits(logits_row, mask_row, masked, cols, N, HAS_MASK: tl.constexpr):
    """Logits of the columns, -inf where the mask forbids or past the end; the same without the mask; and which are NaN
    or infinite."""
    inside = cols < N
    values = tl.load(logits_row + cols, mask=inside, other=0.0)
    finite = tl.abs(values) < INF  # false for NaN
    values = tl.where(inside & finite, values, -INF)
    allowed = values
    if HAS_MASK:
        bits = tl.load(mask_row + (cols >> 5), mask=inside & masked, other=-1)
        allowed = tl.where(((bits >> (cols & 31)) & 1) != 0, values, -INF)
    return allowed, values, inside & (finite == 0)


@triton.jit
def load_seed(seeds_ptr, positions_ptr, row):
    seed = tl.load(seeds_ptr + row * 2) | (tl.load(seeds_ptr + row * 2 + 1) << 32)
    return seed, tl.load(positions_ptr + row).to(tl.uint32)


@triton.jit
def scan_kernel(
    logits_ptr,  # float32 [S, N]
    temperature_ptr,  # float32 [S]
    top_p_ptr,  # float32 [S]
    seeds_ptr,  # int64 [S, 2]
    positions_ptr,  # int64 [S]
    ids_ptr,  # int64 [N], with HAS_IDS
    mask_ptr,  # int32 [M, mask_stride], with HAS_MASK
    mask_rows_ptr,  # int32 [S], with HAS_MASK: a row's mask, -1 for none
    # float32 [S, 4, tiles]: largest logit (NaN: not finite); relative to it, bound of the scores, and mass; with
    # HAS_MASK, largest logit whatever is forbidden.
    stats_ptr,
    argmax_ptr,  # int32 [S, tiles]
    N,
    mask_stride,
    MIN_TEMPERATURE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    num_tiles = tl.num_programs(0)
    cols = tile * TILE + tl.arange(0, TILE)  # [TILE]
    mask_row, masked = find_mask(mask_ptr, mask_rows_ptr, mask_stride, row, HAS_MASK)
    values, unmasked, broken = load_logits(logits_ptr + row * N, mask_row, masked, cols, N, HAS_MASK)
    top = tl.max(values, axis=0)
    any_broken = tl.max(broken.to(tl.int32), axis=0)
    stats = stats_ptr + row * 4 * num_tiles + tile
    if HAS_MASK:
        tl.store(stats + 3 * num_tiles, tl.max(unmasked, axis=0))
    tl.store(stats, tl.where(any_broken != 0, float("nan"), top))
    tl.store(argmax_ptr + row * num_tiles + tile, tl.min(tl.where(values == top, cols, N), axis=0))
    temperature = tl.load(temperature_ptr + row)
    if temperature >= MIN_TEMPERATURE:
        # A tile with nothing to draw has top -inf: any finite number serves in its place.
        behind = (values - tl.where(top > -INF, top, 0.0)) * (1.0 / temperature)
        seed, position = load_seed(seeds_ptr, positions_ptr, row)
        words = random_words(seed, position, tile * TILE, ids_ptr, N, TILE, HAS_IDS)
        tl.store(stats + num_tiles, tl.max(behind + approximate_gumbel(words), axis=0))
        if tl.load(top_p_ptr + row) < 1.0:
            tl.store(stats + 2 * num_tiles, tl.sum(tl.exp(behind), axis=0))


@triton.jit
def load_tile(line, tile, TILE: tl.constexpr, HAS_MASK: tl.constexpr):
    """Columns of a tile, and their z = (logit - top) / temperature, rounded as the reference rounds it: [TILE] each."""
    logits_row, mask_row, masked, top, temperature, N = line
    cols = tile * TILE + tl.arange(0, TILE)
    values, _, _ = load_logits(logits_row, mask_row, masked, cols, N, HAS_MASK)
    return cols, tl.div_rn(values - top, temperature)


@triton.jit
def first_tile(wanted, tiles, NT_BLOCK: tl.constexpr):
    return tl.min(tl.where(wanted, tiles, NT_BLOCK), axis=0)


@triton.jit
def best_score(
    line,
    z_tiles,  # [NT_BLOCK], z of each tile's largest logit
    bounds,  # [NT_BLOCK], no score of the tile is above
    tiles,  # [NT_BLOCK]
    floor,
    seed,
    position,
    ids_ptr,
    TILE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """The column with the largest z + noise among those with z >= floor; the first of equals."""
    N = line[5]
    left = tl.where(z_tiles >= floor, bounds, -INF)
    bound = tl.max(left, axis=0)
    best = tl.full([], -INF, tl.float32)
    token = tl.full([], 0, tl.int32)
    while (bound >= best) & (bound > -INF):
        tile = tl.min(tl.where(left == bound, tiles, N), axis=0)
        cols, z = load_tile(line, tile, TILE, HAS_MASK)
        noise = exact_gumbel(random_words(seed, position, tile * TILE, ids_ptr, N, TILE, HAS_IDS))
        scores = tl.where(z >= floor, z + noise, -INF)
        score = tl.max(scores, axis=0)
        col = tl.min(tl.where(scores == score, cols, N), axis=0)
        token = tl.where((score > best) | ((score == best) & (col < token)), col, token)
        best = tl.maximum(best, score)
        left = tl.where(tiles == tile, -INF, left)
        bound = tl.max(left, axis=0)
    return token


@triton.jit
def count_and_mass(
    line, z_tiles, tiles, num_tiles, floor, TILE: tl.constexpr, NT_BLOCK: tl.constexpr, HAS_MASK: tl.constexpr
):
    """How many tokens have z >= floor, int32, and their sum of exp(z), float64: in the order of the columns."""
    N = line[5]
    left = (z_tiles >= floor) & (tiles < num_tiles)
    counts = tl.zeros([TILE], tl.int32)
    masses = tl.zeros([TILE], tl.float32)
    tile = first_tile(left, tiles, NT_BLOCK)
    while tile < NT_BLOCK:
        cols, z = load_tile(line, tile, TILE, HAS_MASK)
        counted = (z >= floor) & (cols < N)
        counts += counted.to(tl.int32)
        masses += tl.where(counted, tl.exp(z), 0.0)
        left = left & (tiles != tile)
        tile = first_tile(left, tiles, NT_BLOCK)
    return tl.sum(counts, axis=0), tl.sum(masses.to(tl.float64), axis=0)


@triton.jit
def kth_largest(line, z_tiles, tiles, num_tiles, k, TILE: tl.constexpr, NT_BLOCK: tl.constexpr, HAS_MASK: tl.constexpr):
    """The k-th largest z, by radix selection: z <= 0, so the larger is that with the smaller bits but for the sign."""
    N = line[5]
    # The k tiles with the largest tops hold k tokens that reach the least of these tops: others needn't be read.
    floor = tl.min(tl.where(tiles < k, tl.sort(z_tiles, descending=True), 0.0), axis=0)
    prefix = tl.full([], 0, tl.int32)
    rank = k
    for shift in tl.static_range(24, -1, -8):
        histogram = tl.zeros([NUM_BINS], tl.int32)
        left = (z_tiles >= floor) & (tiles < num_tiles)
        tile = first_tile(left, tiles, NT_BLOCK)
        while tile < NT_BLOCK:
            cols, z = load_tile(line, tile, TILE, HAS_MASK)
            bits = z.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            counted = cols < N
            if shift < 24:
                counted = counted & ((bits >> (shift + 8)) == prefix)
            histogram += tl.histogram((bits >> shift) & (NUM_BINS - 1), NUM_BINS, mask=counted)
            left = left & (tiles != tile)
            tile = first_tile(left, tiles, NT_BLOCK)
        sums = tl.cumsum(histogram, axis=0)
        prefix = (prefix << 8) | tl.sum((sums < rank).to(tl.int32), axis=0)
        rank -= tl.max(tl.where(sums < rank, sums, 0), axis=0)
    return -(prefix.to(tl.float32, bitcast=True))


@triton.jit
def draw_kernel(
    logits_ptr,  # float32 [S, N]
    temperature_ptr,  # float32 [S]
    top_k_ptr,  # int32 or int64 [S]
    top_p_ptr,  # float32 [S]
    min_p_ptr,  # float32 [S]
    seeds_ptr,  # int64 [S, 2]
    positions_ptr,  # int64 [S]
    ids_ptr,  # int64 [N], with HAS_IDS
    mask_ptr,  # int32 [M, mask_stride], with HAS_MASK
    mask_rows_ptr,  # int32 [S], with HAS_MASK
    stats_ptr,  # float32 [S, 4, num_tiles] of `scan_kernel`
    argmax_ptr,  # int32 [S, num_tiles]
    columns_ptr,  # int64 [S]
    drawn_ptr,  # int64 [S]
    overruled_ptr,  # int32 [S], with HAS_MASK
    latest_ptr,  # int32 [M], with HAS_LATEST
    slots_ptr,  # int64 [S], with HAS_LATEST
    N,
    num_tiles,
    mask_stride,
    MIN_TEMPERATURE: tl.constexpr,
    LEAST_Z: tl.constexpr,
    TILE: tl.constexpr,
    NT_BLOCK: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LATEST: tl.constexpr,
    TRUNCATED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    logits_row = logits_ptr + row * N
    mask_row, masked = find_mask(mask_ptr, mask_rows_ptr, mask_stride, row, HAS_MASK)
    stats = stats_ptr + row * 4 * num_tiles
    tiles = tl.arange(0, NT_BLOCK)  # [NT_BLOCK]
    tops = tl.load(stats + tiles, mask=tiles < num_tiles, other=-INF)
    broken = tl.max((tops != tops).to(tl.int32), axis=0) != 0
    tops = tl.where(tops == tops, tops, -INF)
    top = tl.max(tops, axis=0)
    # With every token forbidden there is nothing to draw: flagged too.
    drawable = (broken == 0) & (top > -INF)
    firsts = tl.load(argmax_ptr + row * num_tiles + tiles, mask=tiles < num_tiles, other=0)
    token = tl.min(tl.where(tops == top, firsts, N), axis=0)
    temperature = tl.load(temperature_ptr + row)
    if drawable & (temperature >= MIN_TEMPERATURE):
        seed, position = load_seed(seeds_ptr, positions_ptr, row)
        line = (logits_row, mask_row, masked, top, temperature, N)
        z_tiles = tl.div_rn(tops - top, temperature)  # [NT_BLOCK]
        bounds = tl.load(stats + num_tiles + tiles, mask=tiles < num_tiles, other=-INF)
        bounds = z_tiles + bounds + SLACK
        floor = tl.full([], LEAST_Z, tl.float32)
        if TRUNCATED:
            top_k = tl.minimum(tl.load(top_k_ptr + row).to(tl.int64), N).to(tl.int32)
            top_p = tl.load(top_p_ptr + row).to(tl.float64)
            min_p = tl.load(min_p_ptr + row).to(tl.float64)
            limited = (top_k > 0) & (top_k < N)
            nucleus = top_p < 1.0
            least = tl.full([], -INF, tl.float32)
            if min_p > 0.0:
                least = tl.minimum(tl.log(min_p), 0.0).to(tl.float32)
                floor = tl.maximum(floor, least)
            # The mass that top-p takes its share of. After a top-k it is found only once a token's fate hangs on it.
            total = tl.full([], 0.0, tl.float64)
            total_known = tl.full([], 1, tl.int32)
            if nucleus:
                if limited:
                    total_known = total_known * 0
                elif min_p > 0.0:
                    _, total = count_and_mass(line, z_tiles, tiles, num_tiles, least, TILE, NT_BLOCK, HAS_MASK)
                else:
                    masses = tl.load(stats + 2 * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
                    total = tl.sum(masses.to(tl.float64) * tl.exp(z_tiles).to(tl.float64), axis=0)
        searching = tl.full([], 1, tl.int32)
        while searching != 0:
            token = best_score(
                line, z_tiles, bounds, tiles, floor, seed, position, ids_ptr, TILE, HAS_IDS, HAS_MASK
            )  # fmt: skip
            searching = searching * 0
            if TRUNCATED:
                z = tl.div_rn(tl.load(logits_row + token) - top, temperature)
                if (limited | nucleus) & (z < 0.0):
                    # The next float above: that of the next smaller bits, z being negative.
                    likelier = (z.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
                    count, mass = count_and_mass(line, z_tiles, tiles, num_tiles, likelier, TILE, NT_BLOCK, HAS_MASK)
                    kept = (count < top_k) | (limited == 0)
                    # The token and those above it are part of the whole: enough to keep most tokens.
                    if kept & nucleus & (mass >= top_p * (mass + tl.exp(z).to(tl.float64))):
                        if total_known == 0:
                            kth = kth_largest(line, z_tiles, tiles, num_tiles, top_k, TILE, NT_BLOCK, HAS_MASK)
                            kth = tl.maximum(least, kth)
                            _, total = count_and_mass(line, z_tiles, tiles, num_tiles, kth, TILE, NT_BLOCK, HAS_MASK)
                            total_known = total_known + 1
                        kept = mass < top_p * total
                    if kept == 0:
                        floor = likelier
                        searching = searching + 1
    token = tl.where(drawable, token, 0).to(tl.int64)
    tl.store(columns_ptr + row, token)
    if HAS_IDS:
        token = tl.load(ids_ptr + token)
    tl.store(drawn_ptr + row, tl.where(drawable, token, -1))
    if HAS_MASK:
        likeliest = tl.load(stats + 3 * num_tiles + tiles, mask=tiles < num_tiles, other=-INF)
        tl.store(overruled_ptr + row, (tl.max(likeliest, axis=0) > top).to(tl.int32))
    if HAS_LATEST:
        tl.store(latest_ptr + tl.load(slots_ptr + row), tl.where(drawable, token, 0).to(tl.int32))
