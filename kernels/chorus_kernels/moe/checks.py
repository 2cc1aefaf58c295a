"""What the ops of the mixture ask of their arguments. Errors: ValueError, which says what was wrong."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chorus_kernels.moe.layout import PackedExperts


def check_experts(
    x: Tensor,
    experts: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
) -> None:
    if x.ndim != 2 or x.dtype != torch.bfloat16:
        raise ValueError(f"x must be bfloat16 [T, H], not {x.dtype} {list(x.shape)}")
    if experts.ndim != 2 or experts.dtype != torch.int32 or experts.shape[0] != x.shape[0] or not experts.shape[1]:
        raise ValueError(f"experts must be int32 [{x.shape[0]}, K], not {experts.dtype} {list(experts.shape)}")
    hidden_size, inner, num_experts = x.shape[1], down.num_columns, gate_up.num_experts
    if (gate_up.num_rows, gate_up.num_columns) != (2 * inner, hidden_size):
        raise ValueError(
            f"gate_up must be [{2 * inner}, {hidden_size}] matrices, not [{gate_up.num_rows}, {gate_up.num_columns}]"
        )
    if down.num_experts != num_experts or down.num_rows != hidden_size:
        raise ValueError(
            f"down must be {num_experts} matrices with {hidden_size} rows, not {down.num_experts} with {down.num_rows}"
        )
    check_floats("gate_up_bias", gate_up_bias, (num_experts, 2 * inner), x.device)
    check_floats("down_bias", down_bias, (num_experts, hidden_size), x.device)
    tensors = {"x": x, "experts": experts}
    check_places(tensors | {"gate_up": gate_up.words, "down": down.words}, x.device)


def check_floats(name: str, tensor: Tensor, shape: Sequence[int], device: torch.device) -> None:
    if tensor.shape != shape or tensor.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"{name} must be bfloat16 or float32 {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
    check_places({name: tensor}, device)


def check_weights(experts: Tensor, weights: Tensor) -> None:
    if weights.shape != experts.shape or weights.dtype != torch.float32:
        raise ValueError(f"weights must be float32 {list(experts.shape)}, not {weights.dtype} {list(weights.shape)}")


def check_progress(progress: Tensor, experts: Tensor) -> None:
    if progress.shape != experts.shape or progress.dtype != torch.int32:
        raise ValueError(f"progress must be int32 {list(experts.shape)}, not {progress.dtype} {list(progress.shape)}")
    check_places({"progress": progress}, experts.device)


def check_rows(rows: Tensor, experts: Tensor, weights: Tensor) -> None:
    check_weights(experts, weights)
    if rows.ndim != 2 or rows.shape[0] != experts.numel():
        raise ValueError(f"rows must be [{experts.numel()}, H], not {list(rows.shape)}")
    check_places({"rows": rows, "experts": experts, "weights": weights}, rows.device)


def check_places(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, not on {device}")
