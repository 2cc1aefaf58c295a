"""Device code around the draw: bias and penalties before it, log probabilities after it."""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)
# A count word: how often a token was generated, and this bit where the prompt holds it.
PROMPT_BIT = tl.constexpr(1 << 30)


# No kernel is compiled for a number of entries, which differs from step to step, nor for a history's length.
@triton.jit(do_not_specialize=["num_entries"])
def bias_kernel(logits_ptr, rows_ptr, tokens_ptr, values_ptr, num_entries, N, BLOCK: tl.constexpr):
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    listed = entries < num_entries
    rows = tl.load(rows_ptr + entries, mask=listed, other=-1).to(tl.int64)
    tokens = tl.load(tokens_ptr + entries, mask=listed, other=-1).to(tl.int64)
    listed = listed & (rows >= 0) & (tokens >= 0) & (tokens < N)
    values = tl.load(values_ptr + entries, mask=listed, other=0.0)
    where = logits_ptr + rows * N + tokens
    tl.store(where, tl.load(where, mask=listed, other=0.0) + values, mask=listed)


@triton.jit
def load_history(
    history_ptr, history_rows_ptr, num_prompt_ptr, num_tokens_ptr, entry, history_stride, N, BLOCK: tl.constexpr
):
    """This program's tokens of an entry's history, which of them exist, and which belong to the prompt: [BLOCK]."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    history = history_ptr + tl.load(history_rows_ptr + entry).to(tl.int64) * history_stride
    known = places < tl.load(num_tokens_ptr + entry)
    tokens = tl.load(history + places, mask=known, other=-1).to(tl.int64)
    return tokens, known & (tokens >= 0) & (tokens < N), places < tl.load(num_prompt_ptr + entry)


@triton.jit(do_not_specialize=["history_stride"])
def count_kernel(
    rows_ptr,  # int64 [P]
    history_ptr,  # int32 or int64 [R, history_stride]
    history_rows_ptr,  # int64 [P]
    num_prompt_ptr,  # int32 [P]
    num_tokens_ptr,  # int32 [P]
    counts_ptr,  # int32 [P, N], zeros
    history_stride,
    N,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(1).to(tl.int64)
    if tl.load(rows_ptr + entry) >= 0:
        tokens, known, prompt = load_history(
            history_ptr, history_rows_ptr, num_prompt_ptr, num_tokens_ptr, entry, history_stride, N, BLOCK
        )
        counts = counts_ptr + entry * N + tokens
        # Integers: the order in which the additions arrive doesn't matter.
        tl.atomic_or(counts, PROMPT_BIT, mask=known & prompt, sem="relaxed")
        tl.atomic_add(counts, 1, mask=known & (prompt == 0), sem="relaxed")


@triton.jit(do_not_specialize=["history_stride"])
def penalty_kernel(
    logits_ptr,  # float32 [S, N]
    rows_ptr,
    history_ptr,
    history_rows_ptr,
    num_prompt_ptr,
    num_tokens_ptr,
    counts_ptr,  # of `count_kernel`; zeros again afterwards
    repetition_ptr,  # float32 [P]
    frequency_ptr,  # float32 [P]
    presence_ptr,  # float32 [P]
    history_stride,
    N,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + entry).to(tl.int64)
    if row >= 0:
        tokens, known, _ = load_history(
            history_ptr, history_rows_ptr, num_prompt_ptr, num_tokens_ptr, entry, history_stride, N, BLOCK
        )
        # Of all the places where a token stands, the one that takes the count away penalises it.
        count = tl.atomic_xchg(counts_ptr + entry * N + tokens, 0, mask=known, sem="relaxed")
        mine = known & (count != 0)
        where = logits_ptr + row * N + tokens
        logits = tl.load(where, mask=mine, other=0.0)
        repetition = tl.load(repetition_ptr + entry)
        penalised = tl.where(logits > 0.0, tl.div_rn(logits, repetition), logits * repetition)
        penalised = tl.minimum(tl.maximum(penalised, -LARGEST), LARGEST)
        generated = count & (PROMPT_BIT - 1)
        amount = generated.to(tl.float32) * tl.load(frequency_ptr + entry) + tl.load(presence_ptr + entry)
        penalised = tl.where(generated > 0, penalised - amount, penalised)
        # A logit that isn't finite stays so: it is the draw's to flag.
        tl.store(where, penalised, mask=mine & (tl.abs(logits) < INF))


@triton.jit
def load_numbers(logits_row, cols, N):
    values = tl.load(logits_row + cols, mask=cols < N, other=-INF)
    return tl.where(values == values, values, -INF)  # not NaN


@triton.jit
def logprob_scan_kernel(
    logits_ptr,  # float32 [S, N]
    stats_ptr,  # float32 [S, 2, tiles]: largest logit, sum of exp(logit - largest)
    argmax_ptr,  # int32 [S, tiles]
    N,
    TILE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    num_tiles = tl.num_programs(0)
    cols = tl.program_id(0) * TILE + tl.arange(0, TILE)  # [TILE]
    values = load_numbers(logits_ptr + row * N, cols, N)
    top = tl.max(values, axis=0)
    total = tl.sum(tl.exp(values - tl.where(top > -INF, top, 0.0)), axis=0)
    stats = stats_ptr + row * 2 * num_tiles + tl.program_id(0)
    tl.store(stats, top)
    tl.store(stats + num_tiles, total)
    first = tl.min(tl.where((values == top) & (cols < N), cols, N), axis=0)
    tl.store(argmax_ptr + row * num_tiles + tl.program_id(0), first)


@triton.jit(do_not_specialize=["count"])
def logprob_kernel(
    logits_ptr,  # float32 [S, N]
    chosen_ptr,  # int64 [S]
    stats_ptr,
    argmax_ptr,
    chosen_logprob_ptr,  # float32 [S]
    ids_ptr,  # int64 [S, count]
    logprobs_ptr,  # float32 [S, count]
    N,
    num_tiles,
    count,
    TILE: tl.constexpr,
    NT_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_row = logits_ptr + row * N
    tiles = tl.arange(0, NT_BLOCK)  # [NT_BLOCK]
    inside = tiles < num_tiles
    stats = stats_ptr + row * 2 * num_tiles + tiles
    # Each tile's likeliest token that isn't listed yet, and its column.
    heads = tl.load(stats, mask=inside, other=-INF)
    cols = tl.load(argmax_ptr + row * num_tiles + tiles, mask=inside, other=N)
    totals = tl.load(stats + num_tiles, mask=inside, other=0.0)
    top = tl.max(heads, axis=0)
    top = tl.where(top > -INF, top, 0.0)
    # The likeliest token alone makes 1, but in a row that has none.
    normaliser = top + tl.log(tl.maximum(tl.sum(totals * tl.exp(heads - top), axis=0), 1.0))
    chosen = tl.load(logits_row + tl.load(chosen_ptr + row))
    tl.store(chosen_logprob_ptr + row, chosen - normaliser)
    for i in range(count):
        value = tl.max(heads, axis=0)
        col = tl.min(tl.where(heads == value, cols, N), axis=0)
        tl.store(ids_ptr + row * count + i, tl.minimum(col, N - 1).to(tl.int64))
        tl.store(logprobs_ptr + row * count + i, value - normaliser)
        tile = col // TILE
        in_tile = tile * TILE + tl.arange(0, TILE)  # [TILE]
        values = load_numbers(logits_row, in_tile, N)
        left = (in_tile < N) & ((values < value) | ((values == value) & (in_tile > col)))
        head = tl.max(tl.where(left, values, -INF), axis=0)
        next_col = tl.min(tl.where(left & (values == head), in_tile, N), axis=0)
        heads = tl.where(tiles == tile, head, heads)
        cols = tl.where(tiles == tile, next_col, cols)
