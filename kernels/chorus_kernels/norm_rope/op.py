"""RMSNorm on the device. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019)."""

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import dependent_launch
from chorus_kernels.norm_rope import _kernel

# 4,096 lanes of a row are 32 values a thread: four 16-byte loads of bfloat16 in flight.
_NUM_WARPS = 4
_ROWS = 4
# Up to so many values of y, `norm_linear` beats a norm and cuBLAS (docs/performance.md); it takes more.
MAX_NORM_LINEAR_VALUES = 4096
_DTYPES = (torch.bfloat16, torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, in float32, rounded once to the dtype of the result.

    x: [T, H]; weight: [H]; each bfloat16 or float32, contiguous. Returns x's dtype [T, H].
    Errors: ValueError for other shapes, dtypes, strides or devices.
    """
    _check(x, weight)
    out = torch.empty_like(x)
    if x.numel():
        _kernel.rms_norm_kernel[(x.shape[0],)](
            x, weight, out, H=x.shape[1], EPS=eps, BLOCK=triton.next_power_of_2(x.shape[1]),
            num_warps=_NUM_WARPS, **dependent_launch(x.device),
        )  # fmt: skip
    return out


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """n = rms_norm(x), rounded to x's dtype; y = n W^T + b. For few tokens and few rows of W, such as a router's.

    x: bfloat16 or float32 [T, H]; norm_weight: [H], bfloat16 or float32; weight: x's dtype [N, H]; bias: [N], bfloat16
    or float32; all contiguous. Returns n times factor, x's dtype [T, H], and y, float32 [T, N], in sums whose order
    depends on H alone. Errors: ValueError for other shapes, dtypes, strides or devices.
    """
    _check(x, norm_weight)
    if weight.dtype != x.dtype:
        raise ValueError(f"x and weight must have one dtype, not {x.dtype} and {weight.dtype}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be [N, {x.shape[1]}], not {list(weight.shape)}")
    if bias.shape != weight.shape[:1] or bias.dtype not in _DTYPES:
        raise ValueError(f"bias must be [{weight.shape[0]}] of bfloat16 or float32, not {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(f"{name} must be contiguous on {x.device}, not on {tensor.device}")
    num_rows, depth = weight.shape
    normed = torch.empty_like(x)
    out = torch.empty(x.shape[0], num_rows, dtype=torch.float32, device=x.device)
    if x.numel() and num_rows:
        _kernel.norm_linear_kernel[(triton.cdiv(num_rows, _ROWS), x.shape[0])](
            x, norm_weight, weight, bias, normed, out, num_rows, factor, H=depth, EPS=eps, BLOCK_N=_ROWS,
            BLOCK=triton.next_power_of_2(depth), num_warps=_NUM_WARPS, **dependent_launch(x.device),
        )  # fmt: skip
    return normed, out


def _check(x: Tensor, weight: Tensor) -> None:
    if x.ndim != 2 or x.dtype not in _DTYPES or not x.is_contiguous():
        raise ValueError(
            f"x must be contiguous bfloat16 or float32 [T, H], not {x.dtype} {list(x.shape)} with strides {x.stride()}"
        )
    if weight.shape != x.shape[1:] or weight.dtype not in _DTYPES or weight.device != x.device:
        raise ValueError(
            f"weight must be [{x.shape[1]}] of bfloat16 or float32 on {x.device}, "
            f"not {list(weight.shape)} of {weight.dtype} on {weight.device}"
        )
    if not weight.is_contiguous():
        raise ValueError("weight must be contiguous")
