"""Routing and experts on the GPU.

    w = softmax of the top-k router logits;  y = sum_k w_k (down_e act(gate_up_e x + b_e) + c_e),  e = e_k
    act: gate, up = even and odd rows;  gate' = min(gate, limit);  up' = clamp(up, -limit, limit)
         act = gate' sigmoid(alpha gate') (up' + 1)

Activations are bfloat16, weights MXFP4 as `layout.PackedExperts` (exact in bfloat16), sums float32. act(...) is rounded
to bfloat16 once; with more than 8 tokens an expert's output is too. No launch waits for the host or depends on what
tensors hold, and sums have a fixed order: the same call gives the same bits.

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025), section 2.2; alpha 1.702, limit 7.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import dependent_launch
from chorus_kernels.moe import _decode_kernel, _decode_sum_kernel, _decode_whole_kernel, _grouped_kernel, _kernel
from chorus_kernels.moe.checks import (
    check_experts,
    check_floats,
    check_places,
    check_progress,
    check_rows,
    check_weights,
)
from chorus_kernels.moe.layout import STEP_COLUMNS, PackedExperts

# What one tensor core tile takes at no further cost.
MAX_DECODE_TOKENS: int = _decode_kernel.COLUMNS.value
# Up to here it pays that down adds up a token's experts itself. With more tokens, they share what they read.
MAX_SUM_TOKENS = 1
# Above that, and up to here, gate-up's programs end together, and to begin down among them is of no use.
MAX_SPLIT_TOKENS = 2
# The decode kernels take what they multiply weights with times this.
_DECODE_FACTOR = 2.0**64
# Registers a thread of down with the sum in it. Up to 128, two programs of eight warps share a multiprocessor; above
# 126, the assembler spills.
_SUM_REGISTERS = 126
# What a program takes at a time: slots to sort, columns to copy or to sum up.
_SORT_SLOTS = 4096
_COLUMNS = 1024
# Columns of a program that adds up a token's experts, and doesn't norm them.
_SUM_COLUMNS = 512


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile sizes of the grouped kernels: rows, slots and steps of 64 columns a program has at a time."""

    rows: int
    slots: int
    steps: int
    num_warps: int
    num_stages: int


def grouped_tiles(num_slots: int, num_experts: int) -> Tiles:
    """Tiles for so many slots over so many experts, by how many an expert gets on average (docs/performance.md)."""
    mean = -(-num_slots // num_experts)
    if mean <= 8:
        return Tiles(rows=128, slots=16, steps=2, num_warps=4, num_stages=5)
    if mean <= 24:
        return Tiles(rows=128, slots=32, steps=2, num_warps=4, num_stages=4)
    if mean <= 128:
        return Tiles(rows=128, slots=64, steps=1, num_warps=4, num_stages=5)
    return Tiles(rows=128, slots=128, steps=1, num_warps=4, num_stages=5)


def route(
    router_logits: Tensor, top_k: int, bias: Tensor | None = None, progress: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Picks each token's experts.

    router_logits: bfloat16 or float32 [T, E]; bias, added to each row: likewise [E]. Returns experts int32 [T, top_k],
    largest logit first, the lower number first among equals, and weights float32 [T, top_k], a softmax over the chosen.
    A row with NaN gets distinct experts that exist, and weights of NaN. progress: int32 [T, top_k], gets the zeros that
    `expert_rows` wants.

    Errors: ValueError for other shapes or dtypes, a tensor that isn't contiguous, or top_k outside 1 .. E.
    """
    if router_logits.ndim != 2 or router_logits.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(
            f"router_logits must be bfloat16 or float32 [T, E], not {router_logits.dtype} {list(router_logits.shape)}"
        )
    num_tokens, num_experts = router_logits.shape
    if not router_logits.is_contiguous():
        raise ValueError("router_logits must be contiguous")
    if bias is not None:
        check_floats("bias", bias, (num_experts,), router_logits.device)
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be between 1 and the {num_experts} experts, not {top_k}")
    experts = torch.empty(num_tokens, top_k, dtype=torch.int32, device=router_logits.device)
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=router_logits.device)
    if progress is not None:
        check_progress(progress, experts)
    if num_tokens:
        block_t = 1 if num_tokens <= 64 else 4
        _kernel.route_kernel[(triton.cdiv(num_tokens, block_t),)](
            router_logits, bias, experts, weights, progress, num_tokens, num_experts, HAS_BIAS=bias is not None,
            HAS_PROGRESS=progress is not None, TOP_K=top_k, BLOCK_T=block_t,
            BLOCK_E=triton.next_power_of_2(num_experts), BLOCK_K=triton.next_power_of_2(top_k),
            num_warps=1 if block_t == 1 else 4, **dependent_launch(router_logits.device),
        )  # fmt: skip
    return experts, weights


def operand_factor(num_tokens: int) -> float:
    """What `expert_rows` wants x to be multiplied with already, for so many tokens: a power of two."""
    return _DECODE_FACTOR if num_tokens <= MAX_DECODE_TOKENS else 1.0


def experts(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    first_expert: int = 0,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The weighted sum of each token's experts: `expert_rows` and their sum.

    weights: float32 [T, K]; returns out_dtype (bfloat16 or float32) [T, H]; the rest as in `expert_rows`.
    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    rows = expert_rows(
        x, experts, gate_up, gate_up_bias, down, down_bias, alpha=alpha, limit=limit, first_expert=first_expert
    )
    check_rows(rows, experts, weights)
    if out_dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"out_dtype must be bfloat16 or float32, not {out_dtype}")
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    _combine(rows, experts, weights, out, None, None, None, out, 0.0, first_expert, down.num_experts)
    return out


def combine_norm(
    rows: Tensor,
    experts: Tensor,
    weights: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    addend: Tensor | None = None,
    *,
    num_experts: int,
    first_expert: int = 0,
) -> tuple[Tensor, Tensor]:
    """s = residual + the weighted sum of each token's rows, rounded to the residual's dtype; y = RMSNorm of the rounded
    s, in the residual's dtype.

    rows: of `expert_rows`; experts: int32 [T, K]; weights: float32 [T, K]; residual: bfloat16 or float32 [T, H];
    norm_weight, addend: [H], bfloat16 or float32. Returns y and s, both new, [T, H]; with an addend, s + addend,
    rounded once, in the place of s.
    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    check_rows(rows, experts, weights)
    shape = (experts.shape[0], rows.shape[1])
    check_floats("residual", residual, shape, rows.device)
    check_floats("norm_weight", norm_weight, shape[1:], rows.device)
    if addend is not None:
        check_floats("addend", addend, shape[1:], rows.device)
    normed, total = torch.empty_like(residual), torch.empty_like(residual)
    _combine(rows, experts, weights, normed, residual, norm_weight, addend, total, eps, first_expert, num_experts)
    return normed, total


def _combine(
    rows: Tensor,
    experts: Tensor,
    weights: Tensor,
    out: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    addend: Tensor | None,
    total: Tensor,
    eps: float,
    first_expert: int,
    num_experts: int,
) -> None:
    (num_tokens, top_k), hidden_size = experts.shape, rows.shape[1]
    if not num_tokens:
        return
    columns, num_warps = triton.next_power_of_2(hidden_size), 16 if num_tokens <= 16 else 8
    if norm_weight is None:
        columns, num_warps = min(columns, _SUM_COLUMNS), 4
    _kernel.combine_kernel[(num_tokens, triton.cdiv(hidden_size, columns))](
        rows, experts, weights, out, residual, norm_weight, addend, total, first_expert, num_experts,
        HIDDEN=hidden_size, TOP_K=top_k, HAS_RESIDUAL=residual is not None, NORM=norm_weight is not None,
        HAS_ADDEND=addend is not None, EPS=eps, BLOCK_H=columns, num_warps=num_warps, **dependent_launch(rows.device),
    )  # fmt: skip


def expert_rows(
    x: Tensor,
    experts: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    first_expert: int = 0,
    x_factor: float = 1.0,
    progress: Tensor | None = None,
) -> Tensor:
    """What each of a token's experts says of it.

    x: bfloat16 [T, H], times x_factor (1 or `operand_factor`), less than 2^63 in size; experts: int32 [T, K], distinct
    within a token; gate_up: [E, 2 I, H], gate and up rows interleaved; gate_up_bias: bfloat16 or float32 [E, 2 I];
    down: [E, H, I]; down_bias: likewise [E, H]. Returns bfloat16 or float32 [T K, H]. The matrices are those of experts
    first_expert to first_expert + E - 1; rows of other experts are left unwritten.

    progress: int32 [T, K], zeros (`route` makes them), which this call uses up: with it, MAX_SPLIT_TOKENS + 1 to
    MAX_DECODE_TOKENS tokens take one launch, if H is I; the result is the same.

    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    check_experts(x, experts, gate_up, gate_up_bias, down, down_bias)
    if progress is not None:
        check_progress(progress, experts)
    num_tokens = x.shape[0]
    if num_tokens == 0:
        return torch.empty(0, x.shape[1], dtype=torch.bfloat16, device=x.device)
    matrices = (gate_up, gate_up_bias, down, down_bias)
    if num_tokens <= MAX_DECODE_TOKENS:
        operand = _operand(x, x_factor)
        if progress is None or num_tokens <= MAX_SPLIT_TOKENS or x.shape[1] != down.num_columns:
            return _decode(operand, experts, *matrices, alpha, limit, first_expert)
        return _decode_whole(operand, experts, progress, *matrices, alpha, limit, first_expert)
    if x_factor != 1.0:
        raise ValueError(f"x_factor must be 1 with so many tokens, not {x_factor}")
    return _grouped(x, experts, *matrices, alpha, limit, first_expert)


def expert_sum(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    residual: Tensor,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    first_expert: int = 0,
    x_factor: float = 1.0,
) -> Tensor:
    """residual + the weighted sum of each token's experts, rounded once, for up to MAX_DECODE_TOKENS.

    weights: float32 [T, K]; residual: bfloat16 or float32 [T, H]; the rest as in `expert_rows`. Returns the residual's
    dtype, [T, H]. Of other shards' experts there is nothing in the sum.
    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    check_experts(x, experts, gate_up, gate_up_bias, down, down_bias)
    check_weights(experts, weights)
    check_floats("residual", residual, x.shape, x.device)
    check_places({"weights": weights}, x.device)
    num_tokens = experts.shape[0]
    if num_tokens > MAX_DECODE_TOKENS:
        raise ValueError(f"x must be of {MAX_DECODE_TOKENS} tokens at most, not {num_tokens}")
    out = torch.empty_like(residual)
    if not num_tokens:
        return out
    operand = _operand(x, x_factor)
    if num_tokens <= MAX_SUM_TOKENS:
        hidden = _decode_hidden(operand, experts, gate_up, gate_up_bias, alpha, limit, first_expert)
        _decode_sum(hidden, experts, weights, down, down_bias, residual, out, first_expert)
    else:
        rows = _decode(operand, experts, gate_up, gate_up_bias, down, down_bias, alpha, limit, first_expert)
        _combine(rows, experts, weights, out, residual, None, None, out, 0.0, first_expert, down.num_experts)
    return out


def _operand(x: Tensor, x_factor: float) -> Tensor:
    """What the decode kernels take."""
    if x_factor not in (1.0, _DECODE_FACTOR):
        raise ValueError(f"x_factor must be 1 or operand_factor's, not {x_factor}")
    return x if x_factor == _DECODE_FACTOR else x * _DECODE_FACTOR


def _decode(
    operand: Tensor,
    experts: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    alpha: float,
    limit: float,
    first_expert: int,
) -> Tensor:
    """float32 [T K, H]."""
    hidden = _decode_hidden(operand, experts, gate_up, gate_up_bias, alpha, limit, first_expert)
    num_tokens, top_k = experts.shape
    rows = torch.empty(num_tokens * top_k, down.num_rows, dtype=torch.float32, device=operand.device)
    _decode_kernel.decode_down_kernel[(triton.cdiv(down.num_rows, 16), num_tokens * top_k)](
        hidden, experts, down.words, down.scales, down.units, down_bias, rows,
        num_tokens, first_expert, down.num_experts,
        **_decode_shape(down.num_rows, down.num_columns, top_k), num_warps=1, num_stages=1,
        **dependent_launch(operand.device),
    )  # fmt: skip
    return rows


def _decode_hidden(
    operand: Tensor,
    experts: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    alpha: float,
    limit: float,
    first_expert: int,
) -> Tensor:
    """2^64 times the activations: bfloat16 [T K, I]."""
    num_tokens, top_k = experts.shape
    inner = gate_up.num_rows // 2
    hidden = torch.empty(num_tokens * top_k, inner, dtype=torch.bfloat16, device=operand.device)
    _decode_kernel.decode_gate_up_kernel[(inner // 8, num_tokens * top_k)](
        operand, experts, gate_up.words, gate_up.scales, gate_up.units, gate_up_bias, hidden,
        num_tokens, first_expert, gate_up.num_experts, alpha, limit,
        **_decode_shape(operand.shape[1], inner, top_k), num_warps=1, num_stages=1, **dependent_launch(operand.device),
    )  # fmt: skip
    return hidden


def _decode_sum(
    hidden: Tensor,
    experts: Tensor,
    weights: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    residual: Tensor,
    out: Tensor,
    first_expert: int,
) -> None:
    num_tokens, top_k = experts.shape
    shape = _decode_shape(down.num_rows, down.num_columns, top_k)
    _decode_sum_kernel.decode_down_sum_kernel[(num_tokens, triton.cdiv(down.num_rows, 16))](
        hidden, experts, weights, down.words, down.scales, down.units, down_bias, residual, out,
        first_expert, down.num_experts,
        **shape, num_warps=shape["BLOCK_K"] * _decode_sum_kernel.PARTS.value, num_stages=1,
        maxnreg=_SUM_REGISTERS, **dependent_launch(hidden.device),
    )  # fmt: skip


def _decode_whole(
    operand: Tensor,
    experts: Tensor,
    progress: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    alpha: float,
    limit: float,
    first_expert: int,
) -> Tensor:
    """What `_decode` returns."""
    num_slots, size, top_k = experts.numel(), operand.shape[1], experts.shape[1]
    hidden = torch.empty(num_slots, size, dtype=torch.bfloat16, device=operand.device)
    rows = torch.empty(num_slots, size, dtype=torch.float32, device=operand.device)
    _decode_whole_kernel.decode_whole_kernel[(num_slots * (size // 8 + triton.cdiv(size, 16)),)](
        operand, experts, progress, gate_up.words, gate_up.scales, gate_up.units, gate_up_bias, hidden,
        down.words, down.scales, down.units, down_bias, rows,
        experts.shape[0], first_expert, gate_up.num_experts, alpha, limit,
        SIZE=size, TOP_K=top_k, BLOCK_K=triton.next_power_of_2(top_k), num_warps=1, num_stages=1,
        **dependent_launch(operand.device),
    )  # fmt: skip
    return rows


def _decode_shape(hidden_size: int, inner: int, top_k: int) -> dict[str, int]:
    return {"HIDDEN": hidden_size, "INNER": inner, "TOP_K": top_k, "BLOCK_K": triton.next_power_of_2(top_k)}


def _grouped(
    x: Tensor,
    experts: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    alpha: float,
    limit: float,
    first_expert: int,
) -> Tensor:
    """bfloat16 [T K, H]."""
    (num_tokens, hidden_size), top_k = x.shape, experts.shape[1]
    num_experts, inner, num_slots = gate_up.num_experts, down.num_columns, num_tokens * top_k
    tiles = grouped_tiles(num_slots, num_experts)
    dependent = dependent_launch(x.device)
    num_tiles = triton.cdiv(num_slots, tiles.slots) + num_experts
    order = torch.empty(num_slots, dtype=torch.int32, device=x.device)
    tile_map = torch.empty(3, num_tiles, dtype=torch.int32, device=x.device)
    fragments = torch.empty(num_tokens, _whole_steps(hidden_size), dtype=torch.bfloat16, device=x.device)
    _grouped_kernel.prepare_kernel[(num_experts + num_tokens,)](
        x, experts, order, tile_map, fragments, num_slots, first_expert, num_experts, num_tiles,
        HIDDEN=hidden_size, BLOCK_M=tiles.slots, BLOCK_E=triton.next_power_of_2(num_experts),
        CHUNK=min(_SORT_SLOTS, triton.next_power_of_2(num_slots)),
        BLOCK_H=min(_COLUMNS, triton.next_power_of_2(hidden_size)), num_warps=4 if num_slots <= 1024 else 8,
        **dependent,
    )  # fmt: skip
    hidden = torch.empty(num_slots, _whole_steps(inner), dtype=torch.bfloat16, device=x.device)
    rows = torch.empty(num_slots, hidden_size, dtype=torch.bfloat16, device=x.device)
    _grouped_kernel.grouped_gate_up_kernel[(triton.cdiv(2 * _whole_steps(inner), tiles.rows), num_tiles)](
        fragments, order, tile_map, gate_up.words, gate_up.scales, gate_up.units, gate_up_bias, hidden,
        num_tiles, alpha, limit, HIDDEN=hidden_size, INNER=inner, TOP_K=top_k,
        BLOCK_N=tiles.rows, BLOCK_M=tiles.slots, BLOCK_S=tiles.steps,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, **dependent,
    )  # fmt: skip
    _grouped_kernel.grouped_down_kernel[(triton.cdiv(hidden_size, tiles.rows), num_tiles)](
        hidden, order, tile_map, down.words, down.scales, down.units, down_bias, rows,
        num_tiles, HIDDEN=hidden_size, INNER=inner,
        BLOCK_N=tiles.rows, BLOCK_M=tiles.slots, BLOCK_S=tiles.steps,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, **dependent,
    )  # fmt: skip
    return rows


def _whole_steps(columns: int) -> int:
    return -(-columns // STEP_COLUMNS) * STEP_COLUMNS
