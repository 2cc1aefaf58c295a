"""What the ops of the mixture ask of their arguments. Errors: ValueError, which says what was wrong."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_tokens(x: Tensor, experts: Tensor, width: int, device: torch.device) -> None:
    if x.ndim != 2 or x.dtype != torch.bfloat16 or x.shape[1] != width:
        raise ValueError(f"x must be bfloat16 [T, {width}], not {x.dtype} {list(x.shape)}")
    if experts.ndim != 2 or experts.dtype != torch.int32 or experts.shape[0] != x.shape[0] or not experts.shape[1]:
        raise ValueError(f"experts must be int32 [{x.shape[0]}, K], not {experts.dtype} {list(experts.shape)}")
    check_places({"x": x, "experts": experts}, device)


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
