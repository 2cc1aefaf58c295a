"""RMSNorm on the device. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019)."""

import torch
import triton
from torch import Tensor

from chorus_kernels.norm_rope._kernel import rms_norm_kernel

# 4,096 lanes of a row are 32 values a thread: four 16-byte loads of bfloat16 in flight.
_NUM_WARPS = 4
_DTYPES = (torch.bfloat16, torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, in float32, rounded once to the dtype of the result.

    x: [T, H]; weight: [H]; out: [T, H] or None for a new tensor of x's dtype; each bfloat16 or float32, contiguous.
    Returns out. Errors: ValueError for other shapes, dtypes, strides or devices.
    """
    _check_rows(x=x)
    _check_weight(x, weight)
    if out is None:
        out = torch.empty_like(x)
    _check_rows(x=x, out=out)
    if x.numel():
        _launch(x, None, weight, out, None, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """s = x + residual, rounded to the residual's dtype; y = `rms_norm` of the rounded s, in x's dtype.

    x, residual: [T, H]; weight: [H]; each bfloat16 or float32, contiguous. Returns y and s, both new, [T, H].
    Errors: ValueError for other shapes, dtypes, strides or devices.
    """
    _check_rows(x=x, residual=residual)
    _check_weight(x, weight)
    out, new_residual = torch.empty_like(x), torch.empty_like(residual)
    if x.numel():
        _launch(x, residual, weight, out, new_residual, eps)
    return out, new_residual


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, new_residual: Tensor | None, eps: float
) -> None:
    num_rows, width = x.shape
    rms_norm_kernel[(num_rows,)](
        x,
        residual,
        weight,
        out,
        new_residual,
        H=width,
        EPS=eps,
        ADD=residual is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_NUM_WARPS,
    )


def _check_rows(x: Tensor, **others: Tensor) -> None:
    for name, tensor in {"x": x, **others}.items():
        if tensor.ndim != 2 or tensor.shape != x.shape:
            raise ValueError(f"{name} must be [T, H] like x ({list(x.shape)}), not {list(tensor.shape)}")
        if tensor.dtype not in _DTYPES or not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(
                f"{name} must be contiguous bfloat16 or float32 on {x.device}, "
                f"not {tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
            )


def _check_weight(x: Tensor, weight: Tensor) -> None:
    if weight.shape != x.shape[1:] or weight.dtype not in _DTYPES or weight.device != x.device:
        raise ValueError(
            f"weight must be [{x.shape[1]}] of bfloat16 or float32 on {x.device}, "
            f"not {list(weight.shape)} of {weight.dtype} on {weight.device}"
        )
    if not weight.is_contiguous():
        raise ValueError("weight must be contiguous")
