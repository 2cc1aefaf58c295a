"""The attention kernels against their references, in memory whose unwritten rows are NaN."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from chorus_kernels.attention import op, reference
from chorus_kernels.attention.op import DecodeTiles, decode_tiles, prefill_tiles
from chorus_kernels.norm_rope import apply_rope, rope_tables

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 20
BLOCK_SIZE, WINDOW = 5, 37
GROUP = NUM_HEADS // NUM_KV_HEADS
NAN = float("nan")
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
FP8 = torch.float8_e4m3fn
# Of queries, and of keys and values.
MIXED_DTYPES = pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32), (torch.bfloat16, FP8), (torch.float32, FP8)],
)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def tensors_on_the_device() -> Iterator[None]:
    with DEVICE:
        yield


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE, dtype)


def shuffled(size: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(size, generator=generator, device="cpu").to(DEVICE, torch.int32)


def empty_memory(num_blocks: int, block_size: int, dtype: torch.dtype) -> Tensor:
    """A layer's memory, cut from a larger one, so that its parts don't follow each other; all of it NaN."""
    layers = torch.full((2, 3, num_blocks, NUM_KV_HEADS, block_size, HEAD_DIM), NAN).to(dtype)
    return layers[:, 1]


def pages(lengths: Sequence[int], dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Paged memory that holds `lengths` positions of each sequence in scattered blocks, and the block tables."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    blocks = shuffled(sum(counts) + 3, seed)
    # Entries beyond a sequence's end lead to a block that nobody writes.
    tables = torch.full((len(lengths), max(counts) + 2), int(blocks[-1]), dtype=torch.int32)
    kv = empty_memory(len(blocks), BLOCK_SIZE, dtype)
    for s, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        tables[s, :count], blocks = blocks[:count], blocks[count:]
        places = torch.arange(length)
        rows = tables[s, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
        fill(kv, rows, seed + s)
    return kv, tables


def rings(lengths: Sequence[int], dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rings after `lengths` positions of each sequence, and their slots as block tables."""
    kv = empty_memory(len(lengths) + 2, WINDOW, dtype)
    slots = shuffled(len(lengths) + 2, seed)[: len(lengths)]
    for s, length in enumerate(lengths):
        fill(kv, slots[s] * WINDOW + torch.arange(min(length, WINDOW)), seed + s)
    return kv, slots.unsqueeze(1)


def fill(kv: Tensor, rows: Tensor, seed: int) -> None:
    k, v = normal(2, len(rows), NUM_KV_HEADS, HEAD_DIM, seed=seed)
    reference.write_kv(k, v, kv, rows)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """The same bits, but for those of NaN."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.float().nan_to_num(9e9), expected.float().nan_to_num(9e9))


def assert_close(actual: Tensor, expected: Tensor, values: Tensor) -> None:
    """Attention of bfloat16 inputs or float32 ones, against float32. Rounding the softmax's weights to bfloat16 moves a
    result by at most 2^-8 of the greatest value, and rounding the result as much again; in the mean square, such
    roundings stay below half of that. float32: sums of some tens of terms, each rounded by 2^-24."""
    step = 2**-8 if actual.dtype == torch.bfloat16 else 2**-19
    error, size = (actual.double() - expected.double()).abs(), values.double()
    size = size[~size.isnan()]
    assert error.numel() == 0 or float(error.max()) <= 2 * step * float(size.abs().max())
    assert error.numel() == 0 or float(error.square().mean().sqrt()) <= step / 2 * float(size.square().mean().sqrt())


def poisoned_scratch(tiles: DecodeTiles, num_sequences: int) -> Tensor:
    return torch.full((tiles.scratch_size(num_sequences, NUM_HEADS, HEAD_DIM) + 7,), NAN)


@DTYPES
@pytest.mark.parametrize("memory_dtype", [torch.bfloat16, torch.float32, FP8])
def test_write_kv_writes_the_rows_and_no_other(dtype: torch.dtype, memory_dtype: torch.dtype) -> None:
    num_tokens = 23
    fused = normal(num_tokens, (NUM_HEADS + 2 * NUM_KV_HEADS), HEAD_DIM, seed=0, dtype=dtype)
    k, v = fused[:, NUM_HEADS:-NUM_KV_HEADS], fused[:, -NUM_KV_HEADS:].clone()
    rows = shuffled(9 * BLOCK_SIZE, 1)[:num_tokens]
    rows[[2, 11]] = -1
    actual, expected = (empty_memory(9, BLOCK_SIZE, memory_dtype) for _ in range(2))
    op.write_kv(k, v, actual, rows)
    reference.write_kv(k, v, expected, rows)
    assert_same(actual, expected)
    op.write_kv(k[:0], v[:0], actual, rows[:0])


@DTYPES
def test_fp8_rounds_to_nearest_even_saturates_and_keeps_nan(dtype: torch.dtype) -> None:
    """Every fp8 number, what is halfway to the next one and to either side of that, and what is beyond them all."""
    numbers = [
        mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        for exponent in range(16)
        for mantissa in range(8)
    ][:-1]  # The last is NaN.
    given, wanted = [*numbers, 449.0, 463.0, 464.0, 1e6, torch.finfo(dtype).max, torch.inf, NAN], [*numbers]
    wanted += [448.0] * (len(given) - len(numbers) - 1) + [NAN]
    for index, (low, high) in enumerate(zip(numbers, numbers[1:], strict=False)):
        half, even = (low + high) / 2, (low, high)[index % 2]
        given += [half * (1 - 2**-7), half, half * (1 + 2**-7)]
        wanted += [low, even, high]
    padding = [0.0] * (-2 * len(given) % HEAD_DIM)
    x = torch.tensor([*given, *(-number for number in given), *padding], dtype=dtype).view(-1, 1, HEAD_DIM)
    expected = torch.tensor([*wanted, *(-number for number in wanted), *padding]).view(-1, 1, HEAD_DIM)
    kv = torch.zeros(2, 1, 1, len(x), HEAD_DIM).to(FP8)
    op.write_kv(x, -x, kv, torch.arange(len(x), dtype=torch.int32))
    assert torch.equal(kv[0, 0].transpose(0, 1).float().nan_to_num(9e9), expected.nan_to_num(9e9))
    assert torch.equal(-kv[1, 0].transpose(0, 1).float().nan_to_num(9e9), expected.nan_to_num(-9e9))
    again = kv.clone()
    reference.write_kv(x, -x, again, torch.arange(len(x), dtype=torch.int32))
    assert_same(kv, again)


def rotated(positions: Tensor) -> Tensor:
    """Cosines and sines of tokens at these positions."""
    table = reference.rope_table(200, torch.linspace(1, 0.01, HEAD_DIM // 2), 1.3)
    return table[positions.long()]


@MIXED_DTYPES
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_rope_split_and_rope_and_write_rotate_as_the_reference_does(
    dtype: torch.dtype, kv_dtype: torch.dtype, num_tokens: int
) -> None:
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    qkv = normal(num_tokens, width + 8, seed=0, dtype=dtype)[:, :width]
    cos_sin = rotated(shuffled(200, 2)[:num_tokens])
    expected = reference.rope_split(qkv.float(), cos_sin, num_kv_heads=NUM_KV_HEADS)
    split = op.rope_split(qkv, cos_sin, num_kv_heads=NUM_KV_HEADS, kv_dtype=kv_dtype)
    for actual, exact, rounded in zip(split, expected, (dtype, kv_dtype, kv_dtype), strict=True):
        assert actual.dtype == rounded and actual.shape == exact.shape
        # One rounding of the result, half of a step of 2^-9 where fp8 is subnormal, and two of float32 products.
        relative, absolute = {torch.bfloat16: (2**-8, 0.0), torch.float32: (0.0, 0.0), FP8: (2**-4, 2**-10)}[rounded]
        bound = exact.abs() * relative + absolute + 2**-21
        assert bool(((actual.float() - exact).abs() <= bound).all())
    assert_same(split[2].flatten(1), reference.rounded(qkv[:, -NUM_KV_HEADS * HEAD_DIM :], kv_dtype))

    kv, expected_kv = (empty_memory(3, BLOCK_SIZE, kv_dtype) for _ in range(2))
    rows = torch.tensor([6, -1, 14, 0, 3, -1, 9], dtype=torch.int32)[:num_tokens]
    out = torch.full((num_tokens, NUM_HEADS, HEAD_DIM), NAN, dtype=dtype)
    assert op.rope_and_write(qkv, cos_sin, kv, rows, out=out) is out
    assert torch.equal(out, split[0])
    reference.write_kv(split[1], split[2], expected_kv, rows)
    assert_same(kv, expected_kv)


def test_rope_table_holds_the_references_cosines_and_sines() -> None:
    frequencies = torch.tensor([1.0, 0.25, 0.01])
    x = normal(5, 2, 6, seed=3)
    positions = torch.tensor([0, 131071, 7, 4096, 99])
    cos, sin = reference.rope_table(131072, frequencies, 1.3)[positions].chunk(2, 1)
    expected = apply_rope(x, *rope_tables(positions, frequencies, 1.3))
    first, second = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    assert torch.allclose(turned, expected, atol=1e-6)


TILES = [
    DecodeTiles(1, 16, 16),
    DecodeTiles(3, 16, 16),
    DecodeTiles(9, 32, 32),
]


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "tiles"),
    [
        (torch.float32, torch.float32, TILES[1]),
        (torch.float32, FP8, TILES[1]),
        *((torch.bfloat16, torch.bfloat16, tiles) for tiles in TILES),
        *((torch.bfloat16, FP8, tiles) for tiles in TILES),
    ],
)
def test_decode_attention_over_pages(dtype: torch.dtype, kv_dtype: torch.dtype, tiles: DecodeTiles) -> None:
    lengths = [1, 0, 33, 64, 75, 16]
    kv, tables = pages(lengths, kv_dtype)
    # Scores of some tens: a softmax without its shift by the highest would overflow.
    q, sinks = normal(len(lengths), NUM_HEADS, HEAD_DIM, seed=5, dtype=dtype) * 9, normal(NUM_HEADS, seed=6)
    counts, scratch = torch.tensor(lengths, dtype=torch.int32), poisoned_scratch(tiles, len(lengths))
    out = torch.full_like(q, NAN)
    returned = op.decode_attention(q, kv, tables, counts, sinks, ring=False, tiles=tiles, scratch=scratch, out=out)
    assert returned is out
    expected = reference.decode_attention(q.float(), kv.float(), tables, counts, sinks, ring=False)
    assert_close(out, expected, kv[1])
    assert not out[1].any()


@MIXED_DTYPES
def test_decode_attention_over_rings(dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    lengths = [3, WINDOW, 0, 500, WINDOW + 1]
    kv, slots = rings(lengths, kv_dtype)
    fused = normal(len(lengths), (NUM_HEADS + 1) * HEAD_DIM, seed=5, dtype=dtype)
    q = fused[:, HEAD_DIM:].unflatten(1, (NUM_HEADS, HEAD_DIM))
    sinks, counts = normal(NUM_HEADS, seed=6, dtype=dtype), torch.tensor(lengths, dtype=torch.int32)
    out = torch.full(q.shape, NAN, dtype=dtype)
    op.decode_attention(q, kv, slots, counts, sinks, ring=True, out=out)
    expected = reference.decode_attention(q.float(), kv.float(), slots, counts, sinks, ring=True)
    assert_close(out, expected, kv[1])
    assert not out[2].any()


@MIXED_DTYPES
@pytest.mark.parametrize(("ring", "num_splits"), [(False, 1), (False, 4), (True, 1)])
def test_rope_decode_attention_writes_then_sees_the_newest(
    dtype: torch.dtype, kv_dtype: torch.dtype, ring: bool, num_splits: int
) -> None:
    # What is there before the newest position is written: in a full ring, in its row, one of long ago.
    lengths = [1, 0, 38, 17, 64, WINDOW]
    kv, tables = (rings if ring else pages)([max(0, length - 1) for length in lengths], kv_dtype)
    counts = torch.tensor(lengths, dtype=torch.int32)
    newest, block_size = counts.long() - 1, kv.shape[3]
    places = newest % WINDOW if ring else newest
    if not ring:
        # Position 0 of the first sequence begins a block that nobody has yet.
        tables[0, 0] = next(iter(set(range(kv.shape[1])) - set(tables.flatten().tolist())))
    rows = tables.gather(1, (places.clamp(0) // block_size).unsqueeze(1)).squeeze(1) * block_size + places % block_size
    rows = torch.where(counts > 0, rows, -1).to(torch.int32)

    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    qkv = normal(len(lengths), width + 4, seed=5, dtype=dtype)[:, :width]
    cos_sin, sinks = rotated(newest.clamp(0)), normal(NUM_HEADS, seed=6)
    expected_kv = kv.clone()
    q = op.rope_and_write(qkv, cos_sin, expected_kv, rows)
    expected = reference.decode_attention(q.float(), expected_kv.float(), tables, counts, sinks, ring=ring)
    tiles = DecodeTiles(num_splits, 16, 16)
    out, scratch = torch.full_like(q, NAN), poisoned_scratch(tiles, len(lengths))
    op.rope_decode_attention(qkv, cos_sin, kv, tables, counts, sinks, ring=ring, tiles=tiles, scratch=scratch, out=out)
    assert_same(kv, expected_kv)
    assert_close(out, expected, expected_kv[1])


def test_the_sink_takes_part_once_and_has_no_value() -> None:
    lengths = torch.tensor([40], dtype=torch.int32)
    kv, tables = pages([40], torch.float32)
    kv[0] = torch.where(kv[0].isnan(), kv[0], 0)
    kv[1] = torch.where(kv[1].isnan(), kv[1], 1)
    q, sinks = normal(1, NUM_HEADS, HEAD_DIM, seed=1), torch.tensor([-200.0, 0.0, 1.0, 2.0, 5.0, 200.0])
    # Forty keys of weight 1 and value 1.
    expected = (40 / (40 + sinks.double().exp())).float().view(1, -1, 1).expand_as(q)
    for tiles in TILES:
        out = op.decode_attention(q, kv, tables, lengths, sinks, ring=False, tiles=tiles)
        assert torch.allclose(out, expected, atol=1e-6)


def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch() -> None:
    lengths, tiles = [61, 7, 30], DecodeTiles(4, 16, 16)
    kv, tables = pages(lengths, torch.bfloat16)
    q, sinks = normal(3, NUM_HEADS, HEAD_DIM, seed=5, dtype=torch.bfloat16), normal(NUM_HEADS, seed=6)
    counts = torch.tensor(lengths, dtype=torch.int32)
    together = op.decode_attention(q, kv, tables, counts, sinks, ring=False, tiles=tiles)
    alone = op.decode_attention(q[:1], kv, tables[:1], counts[:1], sinks, ring=False, tiles=tiles)
    assert torch.equal(together[:1], alone)


# Lengths and starts: more queries than a tile's 42, keys of several tiles, one token, none.
CHUNKS = [([50, 1, 0, 43], [70, 13, 4, 0]), ([3], [0]), ([20], [36])]


@MIXED_DTYPES
@pytest.mark.parametrize(("lengths", "starts"), CHUNKS)
def test_prefill_attention_over_pages(
    dtype: torch.dtype, kv_dtype: torch.dtype, lengths: list[int], starts: list[int]
) -> None:
    kv, tables = pages([start + length for start, length in zip(starts, lengths, strict=True)], kv_dtype)
    q, sinks, cu_tokens, first = chunks(lengths, starts, dtype)
    tiles = torch.cat((prefill_tiles(lengths, starts, GROUP).to(DEVICE), torch.full((1, 2), -1, dtype=torch.int32)))
    out = torch.full(q.shape, NAN, dtype=dtype)
    op.prefill_attention(q, kv, tables, cu_tokens, first, sinks, tiles, out=out)
    expected = reference.prefill_attention(q.float(), kv.float(), tables, cu_tokens, first, sinks)
    assert_close(out, expected, kv[1])


@MIXED_DTYPES
@pytest.mark.parametrize(("lengths", "starts"), CHUNKS)
def test_prefill_attention_over_rings(
    dtype: torch.dtype, kv_dtype: torch.dtype, lengths: list[int], starts: list[int]
) -> None:
    kv, slots = rings(starts, kv_dtype)
    for s, start in enumerate(starts):
        if start >= WINDOW:
            # The position that has just left the window is still in its row, which the chunk's first will take.
            kv[:, slots[s, 0], :, start % WINDOW] = NAN
    q, sinks, cu_tokens, first = chunks(lengths, starts, dtype)
    fused = normal(2, NUM_KV_HEADS, len(q), HEAD_DIM, seed=8, dtype=kv_dtype)
    k, v = fused.transpose(1, 2)
    tiles = prefill_tiles(lengths, starts, GROUP).to(DEVICE)
    out = torch.full(q.shape, NAN, dtype=dtype)
    op.prefill_attention(q, kv, slots, cu_tokens, first, sinks, tiles, window=WINDOW, k=k, v=v, out=out)
    expected = reference.prefill_attention(
        q.float(), kv.float(), slots, cu_tokens, first, sinks, window=WINDOW, k=k.float(), v=v.float()
    )
    assert_close(out, expected, torch.cat((kv[1].float().flatten(), v.float().flatten())))


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("cuts", [(50, 90), (1, 2, 60), tuple(range(80, 90))])
def test_no_cut_of_a_prompt_changes_an_answer_over_fp8(window: int | None, cuts: tuple[int, ...]) -> None:
    """float32 queries: any key or value that is rounded in one way of computing and not in another would show."""
    length, width = 90, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    qkv, sinks, cos_sin = normal(length, width, seed=3), normal(NUM_HEADS, seed=6), rotated(torch.arange(length))
    blocks = torch.arange(1 if window else -(-length // BLOCK_SIZE), dtype=torch.int32).unsqueeze(0)

    def computed(bounds: Sequence[int]) -> Tensor:
        kv = empty_memory(blocks.numel(), window or BLOCK_SIZE, FP8)
        return torch.cat([chunk(kv, start, stop) for start, stop in zip((0, *bounds), bounds, strict=False)])

    def chunk(kv: Tensor, start: int, stop: int) -> Tensor:
        part, table = qkv[start:stop], cos_sin[start:stop]
        if stop - start == 1:
            counts = torch.tensor([stop], dtype=torch.int32)
            return op.rope_decode_attention(part, table, kv, blocks, counts, sinks, ring=window is not None)
        tiles = prefill_tiles([stop - start], [start], GROUP).to(DEVICE)
        where = (torch.tensor([0, stop - start], dtype=torch.int32), torch.tensor([start], dtype=torch.int32))
        rows = torch.arange(start, stop, dtype=torch.int32) % (window or length)
        if window is None:
            return op.prefill_attention(op.rope_and_write(part, table, kv, rows), kv, blocks, *where, sinks, tiles)
        q, k, v = op.rope_split(part, table, num_kv_heads=NUM_KV_HEADS, kv_dtype=FP8)
        out = op.prefill_attention(q, kv, blocks, *where, sinks, tiles, window=window, k=k, v=v)
        rows[:-window] = -1
        op.write_kv(k, v, kv, rows)
        return out

    whole, cut = computed((length,)), computed((*cuts, length))
    assert_close(cut, whole, qkv[:, -NUM_KV_HEADS * HEAD_DIM :])


def chunks(lengths: list[int], starts: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries that are views of a fused projection, sinks, and where chunks begin among tokens and positions."""
    fused = normal(sum(lengths), NUM_HEADS + 1, HEAD_DIM, seed=5, dtype=dtype) * 3
    cu_tokens = torch.tensor([sum(lengths[:c]) for c in range(len(lengths) + 1)], dtype=torch.int32)
    return fused[:, 1:], normal(NUM_HEADS, seed=6), cu_tokens, torch.tensor(starts, dtype=torch.int32)


def test_nothing_to_do() -> None:
    kv, tables = pages([4], torch.float32)
    q, sinks = normal(1, NUM_HEADS, HEAD_DIM, seed=0), normal(NUM_HEADS, seed=6)
    none = torch.zeros(1, dtype=torch.int32)
    assert op.decode_attention(q[:0], kv, tables[:0], none[:0], sinks, ring=False).shape == (0, NUM_HEADS, HEAD_DIM)
    tiles = prefill_tiles([0], [0], GROUP).to(DEVICE)
    assert tiles.shape == (0, 2)
    out = op.prefill_attention(q[:0], kv, tables, none.repeat(2), none, sinks, tiles)
    assert out.shape == (0, NUM_HEADS, HEAD_DIM)


def test_prefill_tiles_cover_each_query_once_and_begin_with_the_longest() -> None:
    tiles = prefill_tiles([100, 0, 3, 42], [0, 5, 900, 20], 3).tolist()
    assert tiles == [[2, 0], [0, 84], [0, 42], [3, 0], [0, 0]]


@pytest.mark.parametrize("num_sequences", [1, 3, 8, 33, 64, 256, 512])
@pytest.mark.parametrize("max_length", [16, 1000, 131072])
def test_decode_tiles_come_from_shapes(num_sequences: int, max_length: int) -> None:
    tiles = decode_tiles(num_sequences, 8, max_length, ring=False)
    assert 1 <= tiles.num_splits <= max(1, min(64, 2048 // num_sequences))
    assert (tiles.num_splits - 1) * tiles.block_keys < max_length
    assert tiles.scratch_size(num_sequences, 64, 64) <= 2048 * 64 * 66
    assert decode_tiles(num_sequences, 8, 128, ring=True) == DecodeTiles(1, 128, 64, num_stages=3)


def wrong_calls() -> list[tuple[str, Callable[[], object]]]:
    kv, tables = pages([4, 9], torch.float32)
    q, sinks, counts = normal(2, NUM_HEADS, HEAD_DIM, seed=0), normal(NUM_HEADS, seed=6), torch.ones(2).int()
    k = normal(2, NUM_KV_HEADS, HEAD_DIM, seed=0)
    qkv, cos_sin = normal(2, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, seed=0), torch.ones(2, HEAD_DIM)
    cu_tokens, tiles = torch.tensor([0, 1, 2]).int(), prefill_tiles([1, 1], [0, 0], GROUP)

    def decode(**changed: object) -> Callable[[], object]:
        arguments = {"q": q, "kv": kv, "block_tables": tables, "lengths": counts, "sinks": sinks, "ring": False}
        return lambda: op.decode_attention(**(arguments | changed))  # type: ignore[arg-type]

    def prefill(**changed: object) -> Callable[[], object]:
        arguments = {"q": q, "kv": kv, "block_tables": tables, "cu_tokens": cu_tokens, "starts": counts}
        return lambda: op.prefill_attention(**(arguments | {"sinks": sinks, "tile_map": tiles} | changed))  # type: ignore[arg-type]

    return [
        ("kv must be", decode(kv=kv.half())),
        ("kv must be bfloat16, float32 or float8_e4m3fn", decode(kv=kv.to(torch.float8_e5m2))),
        ("kv must be", decode(kv=kv.transpose(2, 3))),
        ("q must be", decode(q=q[:, :5])),
        ("q must be", decode(q=q.transpose(1, 2))),
        ("block_tables must be int32", decode(block_tables=tables.long())),
        ("a slot each", decode(ring=True)),
        ("first dimensions must be equal: q 2, block_tables 2, lengths 1", decode(lengths=counts[:1])),
        ("sinks must be", decode(sinks=sinks[1:])),
        ("lengths must be on .*, not on meta", decode(lengths=counts.to("meta"))),
        ("scratch must be", decode(tiles=TILES[1], scratch=torch.empty(3))),
        ("out must be", decode(out=q.bfloat16())),
        ("tiles must not split a ring", decode(ring=True, block_tables=tables[:, :1], tiles=TILES[1])),
        ("must be given together", prefill(window=BLOCK_SIZE)),
        ("blocks of the window's 9 rows, not 5", prefill(window=9, k=k, v=k)),
        ("k must be torch.float32", prefill(window=BLOCK_SIZE, k=k.to(FP8), v=k, block_tables=tables[:, :1])),
        ("v must be torch.float32", prefill(window=BLOCK_SIZE, k=k, v=k.bfloat16(), block_tables=tables[:, :1])),
        ("an entry more", prefill(cu_tokens=cu_tokens[1:])),
        ("tile_map must be", prefill(tile_map=tiles.T.contiguous()[:, :1])),
        ("k must be", lambda: op.write_kv(k[..., :4], k, kv, counts)),
        ("rows must be int32", lambda: op.write_kv(k, k, kv, counts.long())),
        ("cos_sin must be", lambda: op.rope_split(qkv, cos_sin.double(), num_kv_heads=NUM_KV_HEADS)),
        ("qkv must be", lambda: op.rope_split(qkv[:, 1:], cos_sin, num_kv_heads=NUM_KV_HEADS)),
        ("qkv must be", lambda: op.rope_and_write(qkv[:, : 5 * HEAD_DIM], cos_sin, kv, counts)),
        ("must be equal: qkv 2, cos_sin 1", lambda: op.rope_split(qkv, cos_sin[:1], num_kv_heads=NUM_KV_HEADS)),
    ]


with DEVICE:
    WRONG_CALLS = wrong_calls()


@pytest.mark.parametrize(("message", "call"), WRONG_CALLS)
def test_wrong_arguments_are_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
