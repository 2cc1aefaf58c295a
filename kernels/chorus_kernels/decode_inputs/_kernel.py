"""Device code that gathers what a decode step begins with: copies, by one program for each sequence and part."""

import triton
import triton.language as tl


@triton.jit
def _copy(source, target, begin, end, BLOCK: tl.constexpr):
    """Elements begin to begin + BLOCK of a row, before `end`."""
    at = begin + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < end, other=0), mask=at < end)


# No kernel is compiled for a number of sequences, or for how long they may be.
@triton.jit(do_not_specialize=["num_sequences", "num_pages"])
def gather_kernel(
    sent_ptr,  # int32 [4, S]
    last_tokens_ptr,  # int32 [M]
    embedding_ptr,  # [R, H]
    rows_ptr,  # int64 [V], with HAS_ROWS
    rope_ptr,  # float32 [P, D]
    tables_ptr,  # int32 [M, num_pages]
    x_ptr,  # [S, H]
    cos_sin_ptr,  # float32 [S, D]
    block_tables_ptr,  # int32 [S, num_pages]
    lengths_ptr,  # int32 [S]
    slots_ptr,  # int32 [S]
    num_sequences,
    num_pages,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (S, blocks of the longest row). Of a block table, the pages that the sequence sees are copied."""
    sequence, begin = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    token = tl.load(sent_ptr + sequence)
    position = tl.load(sent_ptr + num_sequences + sequence).to(tl.int64)
    length = tl.load(sent_ptr + 2 * num_sequences + sequence)
    slot = tl.load(sent_ptr + 3 * num_sequences + sequence)
    if begin == 0:
        tl.store(lengths_ptr + sequence, length)
        tl.store(slots_ptr + sequence, slot)
    if begin < H:
        row = tl.where(token < 0, tl.load(last_tokens_ptr + slot), token).to(tl.int64)
        if HAS_ROWS:
            row = tl.load(rows_ptr + row)
        _copy(embedding_ptr + row * H, x_ptr + sequence * H, begin, H, BLOCK)
    if begin < D:
        _copy(rope_ptr + position * D, cos_sin_ptr + sequence * D, begin, D, BLOCK)
    seen = tl.cdiv(length, PAGE)
    if begin < seen:
        table = tables_ptr + slot.to(tl.int64) * num_pages
        _copy(table, block_tables_ptr + sequence * num_pages, begin, seen, BLOCK)
