"""Routing and experts on the GPU.

    w = softmax of the top-k router logits;  y = sum_k w_k (down_e act(gate_up_e x + b_e) + c_e),  e = e_k
    act: gate, up = even and odd rows;  gate' = min(gate, limit);  up' = clamp(up, -limit, limit)
         act = gate' sigmoid(alpha gate') (up' + 1)

Activations are bfloat16, weights MXFP4 as `layout.PackedExperts` (exact in bfloat16), sums float32. act(...) is rounded
to bfloat16 once; with more than 8 tokens an expert's output is too. No launch waits for the host or depends on what
tensors hold, and sums have a fixed order: the same call gives the same bits.

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025), section 2.2; alpha 1.702, limit 7.
"""

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import dependent_launch
from chorus_kernels.moe import _kernel
from chorus_kernels.moe.checks import (
    check_floats,
    check_places,
    check_progress,
    check_rows,
    check_tokens,
    check_weights,
)
from chorus_kernels.moe.expert_layer import ExpertLayer
from chorus_kernels.moe.few_tokens import (
    MAX_DECODE_TOKENS,
    OPERAND_FACTOR,
    decode_rows,
    decode_rows_at_once,
    decode_sum,
)
from chorus_kernels.moe.many_tokens import grouped_rows

__all__ = [
    "MAX_DECODE_TOKENS",
    "ExpertLayer",
    "combine_norm",
    "expert_rows",
    "expert_sum",
    "experts",
    "operand_factor",
    "route",
]

# Up to here it pays that down adds up a token's experts itself. With more tokens, they share what they read.
MAX_SUM_TOKENS = 1
# Up to here, gate-up's programs run and end together, and to begin down among them is of no use.
MAX_SPLIT_TOKENS = 2
# Columns of a program that adds up a token's experts, and doesn't norm them.
_SUM_COLUMNS = 512


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
    return OPERAND_FACTOR if num_tokens <= MAX_DECODE_TOKENS else 1.0


def experts(
    x: Tensor, experts: Tensor, weights: Tensor, layer: ExpertLayer, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The weighted sum of each token's experts: `expert_rows` and their sum.

    weights: float32 [T, K]; returns out_dtype (bfloat16 or float32) [T, H]; the rest as in `expert_rows`.
    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    rows = expert_rows(x, experts, layer)
    check_rows(rows, experts, weights)
    if out_dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"out_dtype must be bfloat16 or float32, not {out_dtype}")
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    _combine(rows, experts, weights, out, None, None, None, out, 0.0, layer.first_expert, layer.num_experts)
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
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """s = residual + the weighted sum of each token's rows, rounded to the residual's dtype; y = RMSNorm of the rounded
    s, in the residual's dtype.

    rows: of `expert_rows`; experts: int32 [T, K]; weights: float32 [T, K]; residual: bfloat16 or float32 [T, H];
    norm_weight, addend: [H], bfloat16 or float32. Returns y and s, both new, [T, H]; with an addend, s + addend,
    rounded once, in the place of s. batch_invariant: whether a token's bits must not depend on how many there are.
    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    check_rows(rows, experts, weights)
    shape = (experts.shape[0], rows.shape[1])
    check_floats("residual", residual, shape, rows.device)
    check_floats("norm_weight", norm_weight, shape[1:], rows.device)
    if addend is not None:
        check_floats("addend", addend, shape[1:], rows.device)
    normed, total = torch.empty_like(residual), torch.empty_like(residual)
    num_warps = 16 if experts.shape[0] <= 16 and not batch_invariant else 8
    _combine(
        rows, experts, weights, normed, residual, norm_weight, addend, total, eps, first_expert, num_experts, num_warps
    )
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
    norm_warps: int = 8,
) -> None:
    (num_tokens, top_k), hidden_size = experts.shape, rows.shape[1]
    if not num_tokens:
        return
    columns, num_warps = triton.next_power_of_2(hidden_size), norm_warps
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
    layer: ExpertLayer,
    *,
    x_factor: float = 1.0,
    progress: Tensor | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """What each of a token's experts says of it.

    x: bfloat16 [T, H], times x_factor (1 or `operand_factor`), less than 2^63 in size; experts: int32 [T, K], distinct
    within a token. Returns bfloat16 or float32 [T K, H]; rows of experts that aren't the layer's are left unwritten.

    progress: int32 [T, K], zeros (`route` makes them), which this call uses up: with it, MAX_SPLIT_TOKENS + 1 to
    MAX_DECODE_TOKENS tokens take one launch, if H is I and both biases have one dtype; the result is the same.
    batch_invariant: whether a token's bits must not depend on how many there are; slower for few. Then x_factor is 1.

    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    check_tokens(x, experts, layer.width, layer.device)
    if progress is not None:
        check_progress(progress, experts)
    num_tokens = x.shape[0]
    if num_tokens == 0:
        return torch.empty(0, layer.width, dtype=torch.bfloat16, device=x.device)
    if num_tokens > MAX_DECODE_TOKENS or batch_invariant:
        if x_factor != 1.0:
            raise ValueError(f"x_factor must be 1 here, not {x_factor}")
        return grouped_rows(x, experts, layer)
    operand = _operand(x, x_factor)
    alike = layer.width == layer.inner and layer.gate_up_bias.dtype == layer.down_bias.dtype
    if progress is None or num_tokens <= MAX_SPLIT_TOKENS or not alike:
        return decode_rows(operand, experts, layer)
    return decode_rows_at_once(operand, experts, layer, progress)


def expert_sum(
    x: Tensor, experts: Tensor, weights: Tensor, layer: ExpertLayer, residual: Tensor, *, x_factor: float = 1.0
) -> Tensor:
    """residual + the weighted sum of each token's experts, rounded once, for up to MAX_DECODE_TOKENS.

    weights: float32 [T, K]; residual: bfloat16 or float32 [T, H]; the rest as in `expert_rows`. Returns the residual's
    dtype, [T, H]. Of experts that aren't the layer's there is nothing in the sum.
    Errors: ValueError for other shapes, dtypes or devices, or tensors that aren't contiguous.
    """
    check_tokens(x, experts, layer.width, layer.device)
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
        decode_sum(operand, experts, weights, layer, residual, out)
    else:
        rows = decode_rows(operand, experts, layer)
        _combine(rows, experts, weights, out, residual, None, None, out, 0.0, layer.first_expert, layer.num_experts)
    return out


def _operand(x: Tensor, x_factor: float) -> Tensor:
    """What the kernels for few tokens take."""
    if x_factor not in (1.0, OPERAND_FACTOR):
        raise ValueError(f"x_factor must be 1 or operand_factor's, not {x_factor}")
    return x if x_factor == OPERAND_FACTOR else x * OPERAND_FACTOR
