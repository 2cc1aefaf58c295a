"""Device code of both of the experts' products in one launch, for few tokens.

Programs that read weights for down are there while the last of gate-up still run, so that the memory is never idle
between the two. They wait for the activations of their own expert only, which gate-up's programs count.
"""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import INTERPRETED, rounded
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous
from chorus_kernels.moe._activation import swiglu
from chorus_kernels.moe._decode_kernel import OPERAND_SCALE, SUM_SCALE, chosen_slots, load_first, tile_sums


@triton.jit
def _acquire(ptr):
    """What an int32 holds now; later loads see what was stored before it was."""
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [ptr.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _wait_for_count(ptr, count):
    # The interpreter runs one program after another.
    if not INTERPRETED:
        seen = _acquire(ptr)
        while seen < count:
            seen = _acquire(ptr)


@triton.jit(do_not_specialize=["num_tokens"])
def decode_whole_kernel(
    x_ptr, experts_ptr, progress_ptr,
    up_words_ptr, up_scales_ptr, up_units_ptr, up_bias_ptr, hidden_ptr,
    down_words_ptr, down_scales_ptr, down_units_ptr, down_bias_ptr, out_ptr,
    num_tokens, first_expert, num_experts, alpha, limit,
    SIZE: tl.constexpr, TOP_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """What `decode_gate_up_kernel` makes of x_ptr's 2^64 x, in `hidden_ptr`, and what `decode_down_kernel` makes of
    that, where both matrices' rows are SIZE long: one loop for both. progress_ptr: zeros, by slot. Grid: gate-up's
    tiles, SIZE / 8 for each slot, then those of down, SIZE / 16.

    The GPU begins programs in the order of their numbers, so that those of gate-up are all there or done when the first
    of down waits for one.
    """
    wait_for_previous(DEPENDENT)
    UP_TILES: tl.constexpr = SIZE // 8
    DOWN_TILES: tl.constexpr = (SIZE + 15) // 16
    STEPS: tl.constexpr = (SIZE + 63) // 64
    QUADS: tl.constexpr = (STEPS + 3) // 4
    program = tl.program_id(0)
    num_up = num_tokens * TOP_K * UP_TILES
    is_up = program < num_up
    slot = tl.where(is_up, program // UP_TILES, (program - num_up) // DOWN_TILES)
    tile = tl.where(is_up, program % UP_TILES, (program - num_up) % DOWN_TILES)
    expert, slots = chosen_slots(experts_ptr, slot, num_tokens, first_expert, TOP_K, BLOCK_K)
    if (expert < 0) | (expert >= num_experts):
        return
    words_ptr = tl.where(is_up, up_words_ptr, down_words_ptr)
    scales_ptr = tl.where(is_up, up_scales_ptr, down_scales_ptr)
    row = expert.to(tl.int64) * tl.where(is_up, UP_TILES, DOWN_TILES) + tile
    w0, s0, w1, s1 = load_first(words_ptr, scales_ptr, row, STEPS, QUADS)
    n = tile * 16 + 2 * tl.arange(0, 8)
    num_rows = tl.where(is_up, 2 * SIZE, SIZE)
    bias_at = tl.where(is_up, up_bias_ptr, down_bias_ptr) + expert.to(tl.int64) * num_rows + n
    even_bias = tl.load(bias_at, mask=n < num_rows, other=0.0).to(tl.float32)
    odd_bias = tl.load(bias_at + 1, mask=n + 1 < num_rows, other=0.0).to(tl.float32)
    unit = tl.load(tl.where(is_up, up_units_ptr, down_units_ptr) + expert) * SUM_SCALE
    if not is_up:
        _wait_for_count(progress_ptr + slot, UP_TILES)
        let_next_begin(DEPENDENT)
    # Columns without a slot repeat another.
    source = tl.where(slots < 0, tl.max(slots, 0), slots)
    source = tl.where(is_up, source // TOP_K, source)
    x_ptrs = tl.where(is_up, x_ptr, hidden_ptr) + source.to(tl.int64) * SIZE
    even, odd = tile_sums(w0, s0, w1, s1, words_ptr, scales_ptr, x_ptrs, row, SIZE, STEPS, QUADS)  # [8, 8]
    even = even * unit + even_bias[:, None]
    odd = odd * unit + odd_bias[:, None]
    at = slots.to(tl.int64)[None, :] * SIZE
    real = (slots >= 0)[None, :]
    if is_up:
        i = tile * 8 + tl.arange(0, 8)
        activated = swiglu(even, odd, alpha, limit) * OPERAND_SCALE
        tl.store(hidden_ptr + at + i[:, None], rounded(activated, tl.bfloat16), mask=real)
        # What all of the program's threads have stored is released by the one that counts.
        tl.debug_barrier()
        tl.atomic_add(progress_ptr + slot, 1, sem="release", scope="gpu")
    else:
        tl.store(out_ptr + at + n[:, None], even, mask=real & (n < SIZE)[:, None])
        tl.store(out_ptr + at + n[:, None] + 1, odd, mask=real & (n + 1 < SIZE)[:, None])
