"""Device code that picks experts, and adds up what they say."""

import triton
import triton.language as tl

from chorus_kernels.arithmetic import rounded
from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous


# No kernel is compiled for a number of tokens, slots or tiles, which differ from step to step.
@triton.jit(do_not_specialize=["num_tokens"])
def route_kernel(
    logits_ptr, bias_ptr, experts_ptr, weights_ptr, progress_ptr, num_tokens, num_experts,
    HAS_BIAS: tl.constexpr, HAS_PROGRESS: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The TOP_K largest of each row plus bias, lowest number first among equals, and a softmax over them; zeros for
    those who count by slot. Grid: (T / BLOCK_T)."""
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    inside = (t < num_tokens)[:, None] & (e < num_experts)[None, :]
    at = t.to(tl.int64)[:, None] * num_experts + e[None, :]
    logits = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)  # [BT, BE]
    if HAS_BIAS:
        logits += tl.load(bias_ptr + e, mask=e < num_experts, other=0.0).to(tl.float32)[None, :]
    broken = tl.max((logits != logits).to(tl.int32), 1) > 0  # [BT]
    # Without NaN each step below finds an expert that is there and not yet taken, whatever the row holds.
    logits = tl.where(logits != logits, float("-inf"), logits)
    taken = tl.broadcast_to((e >= num_experts)[None, :], BLOCK_T, BLOCK_E)
    chosen = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    values = tl.full([BLOCK_T, BLOCK_K], float("-inf"), tl.float32)
    # Added up here, in an order that no layout changes.
    first, total = tl.zeros([BLOCK_T], tl.float32), tl.zeros([BLOCK_T], tl.float32)
    for i in tl.static_range(TOP_K):
        largest = tl.max(tl.where(taken, float("-inf"), logits), 1)  # [BT]
        candidates = (logits == largest[:, None]) & (taken == 0)
        expert = tl.min(tl.where(candidates, e[None, :], BLOCK_E), 1)  # [BT]
        taken = taken | (e[None, :] == expert[:, None])
        chosen = tl.where((k == i)[None, :], expert[:, None], chosen)
        values = tl.where((k == i)[None, :], largest[:, None], values)
        if i == 0:
            first = largest
        total += tl.exp(largest - first)
    shares = tl.exp(values - first[:, None]) / total[:, None]
    shares = tl.where(broken[:, None], float("nan"), shares)
    to = t.to(tl.int64)[:, None] * TOP_K + k[None, :]
    mask = (t < num_tokens)[:, None] & (k < TOP_K)[None, :]
    tl.store(experts_ptr + to, chosen, mask=mask)
    tl.store(weights_ptr + to, shares, mask=mask)
    if HAS_PROGRESS:
        tl.store(progress_ptr + to, tl.zeros([BLOCK_T, BLOCK_K], tl.int32), mask=mask)


@triton.jit
def combine_kernel(
    rows_ptr, experts_ptr, weights_ptr, out_ptr, residual_ptr, norm_ptr, addend_ptr, sum_ptr, first_expert, num_experts,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, HAS_RESIDUAL: tl.constexpr, NORM: tl.constexpr,
    HAS_ADDEND: tl.constexpr, EPS: tl.constexpr, BLOCK_H: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """sum[t] = residual[t] + sum over k of weights[t, k] rows[t, k]; slots of other shards are never read.
    out[t] is that, or with NORM its RMSNorm; with HAS_ADDEND, sum[t] then has the addend in it, too. Grid: (T, blocks
    of BLOCK_H columns; one with NORM)."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    if NORM:
        norm = tl.load(norm_ptr + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    acc = tl.zeros([BLOCK_H], tl.float32)
    for k in tl.static_range(TOP_K):
        slot = token * TOP_K + k
        expert = tl.load(experts_ptr + slot) - first_expert
        mine = (expert >= 0) & (expert < num_experts)
        weight = tl.where(mine, tl.load(weights_ptr + slot), 0.0)
        end = tl.where(mine, HIDDEN, 0)
        acc += weight * tl.load(rows_ptr + slot * HIDDEN + h, mask=h < end, other=0.0).to(tl.float32)
    at = token * HIDDEN + h
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + at, mask=h < HIDDEN, other=0.0).to(tl.float32)
    if NORM:
        stored = acc
        if HAS_ADDEND:
            stored += tl.load(addend_ptr + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
        tl.store(sum_ptr + at, rounded(stored, sum_ptr.dtype.element_ty), mask=h < HIDDEN)
        # Of the sum as it is stored without an addend: whoever norms it later gets the same bits.
        acc = rounded(acc, sum_ptr.dtype.element_ty).to(tl.float32)
        acc = acc * tl.rsqrt(tl.sum(acc * acc, 0) / HIDDEN + EPS) * norm
    tl.store(out_ptr + at, rounded(acc, out_ptr.dtype.element_ty), mask=h < HIDDEN)
