"""Launches of the experts' products for up to MAX_DECODE_TOKENS tokens, which need no sorting."""

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import dependent_launch
from chorus_kernels.moe import _decode_kernel, _decode_sum_kernel, _decode_whole_kernel
from chorus_kernels.moe.expert_layer import ExpertLayer

# What one tensor core tile takes at no further cost.
MAX_DECODE_TOKENS: int = _decode_kernel.COLUMNS.value
# The kernels take what they multiply weights with times this.
OPERAND_FACTOR = 2.0**64
# Registers a thread of down with the sum in it. Up to 128, two programs of eight warps share a multiprocessor; above
# 126, the assembler spills.
SUM_REGISTERS = 126


def decode_rows(operand: Tensor, experts: Tensor, layer: ExpertLayer) -> Tensor:
    """What each of a token's experts says of it, in two launches. operand: bfloat16 [T, H], x times OPERAND_FACTOR;
    experts: int32 [T, K]. Returns float32 [T K, H]."""
    hidden, down = _hidden(operand, experts, layer), layer.down
    num_tokens, top_k = experts.shape
    rows = torch.empty(num_tokens * top_k, layer.width, dtype=torch.float32, device=operand.device)
    _decode_kernel.decode_down_kernel[(triton.cdiv(layer.width, 16), num_tokens * top_k)](
        hidden, experts, down.words, down.scales, down.units, layer.down_bias, rows,
        num_tokens, layer.first_expert, layer.num_experts,
        **_shape(layer, top_k), num_warps=1, num_stages=1, **dependent_launch(operand.device),
    )  # fmt: skip
    return rows


def decode_rows_at_once(operand: Tensor, experts: Tensor, layer: ExpertLayer, progress: Tensor) -> Tensor:
    """The same in one launch, where H is I. progress: int32 [T, K], zeros; used up."""
    num_slots, size, top_k = experts.numel(), layer.width, experts.shape[1]
    gate_up, down = layer.gate_up, layer.down
    hidden = torch.empty(num_slots, size, dtype=torch.bfloat16, device=operand.device)
    rows = torch.empty(num_slots, size, dtype=torch.float32, device=operand.device)
    _decode_whole_kernel.decode_whole_kernel[(num_slots * (size // 8 + triton.cdiv(size, 16)),)](
        operand, experts, progress, gate_up.words, gate_up.scales, gate_up.units, layer.gate_up_bias, hidden,
        down.words, down.scales, down.units, layer.down_bias, rows,
        experts.shape[0], layer.first_expert, layer.num_experts, layer.alpha, layer.limit,
        SIZE=size, TOP_K=top_k, BLOCK_K=triton.next_power_of_2(top_k), num_warps=1, num_stages=1,
        **dependent_launch(operand.device),
    )  # fmt: skip
    return rows


def decode_sum(
    operand: Tensor, experts: Tensor, weights: Tensor, layer: ExpertLayer, residual: Tensor, out: Tensor
) -> None:
    """residual plus the weighted sum of each token's rows, in two launches. weights: float32 [T, K]; residual, out:
    [T, H]."""
    hidden, down = _hidden(operand, experts, layer), layer.down
    num_tokens, top_k = experts.shape
    shape = _shape(layer, top_k)
    _decode_sum_kernel.decode_down_sum_kernel[(num_tokens, triton.cdiv(layer.width, 16))](
        hidden, experts, weights, down.words, down.scales, down.units, layer.down_bias, residual, out,
        layer.first_expert, layer.num_experts,
        **shape, num_warps=shape["BLOCK_K"] * _decode_sum_kernel.PARTS.value, num_stages=1,
        maxnreg=SUM_REGISTERS, **dependent_launch(operand.device),
    )  # fmt: skip


def _hidden(operand: Tensor, experts: Tensor, layer: ExpertLayer) -> Tensor:
    """OPERAND_FACTOR times the activations: bfloat16 [T K, I]."""
    num_tokens, top_k = experts.shape
    gate_up = layer.gate_up
    hidden = torch.empty(num_tokens * top_k, layer.inner, dtype=torch.bfloat16, device=operand.device)
    _decode_kernel.decode_gate_up_kernel[(layer.inner // 8, num_tokens * top_k)](
        operand, experts, gate_up.words, gate_up.scales, gate_up.units, layer.gate_up_bias, hidden,
        num_tokens, layer.first_expert, layer.num_experts, layer.alpha, layer.limit,
        **_shape(layer, top_k), num_warps=1, num_stages=1, **dependent_launch(operand.device),
    )  # fmt: skip
    return hidden


def _shape(layer: ExpertLayer, top_k: int) -> dict[str, int]:
    return {"HIDDEN": layer.width, "INNER": layer.inner, "TOP_K": top_k, "BLOCK_K": triton.next_power_of_2(top_k)}
