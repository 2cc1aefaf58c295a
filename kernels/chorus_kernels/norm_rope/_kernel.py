"""Device code of RMSNorm: one program a row, the row in registers."""

import triton
import triton.language as tl

from chorus_kernels.dependent_launch import let_next_begin, wait_for_previous


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [T, H]
    weight_ptr,  # [H]
    out_ptr,  # [T, H]
    H: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    cols = tl.arange(0, BLOCK)  # [BLOCK]
    inside = cols < H
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    at = tl.program_id(0).to(tl.int64) * H + cols
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / H + EPS)
    tl.store(out_ptr + at, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_linear_kernel(
    x_ptr,  # [T, H]
    norm_ptr,  # [H]
    weight_ptr,  # [N, H]
    bias_ptr,  # [N]
    normed_ptr,  # [T, H]
    out_ptr,  # [T, N]
    N,
    factor,
    H: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Program (block of rows, token): norms the token anew, and the first stores it, times `factor`."""
    n, cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK)
    inside = cols < H
    rows = weight_ptr + tl.minimum(n, N - 1)[:, None] * H + cols[None, :]
    weight = tl.load(rows, mask=inside[None, :], other=0.0)  # [BN, BLOCK]
    bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_previous(DEPENDENT)
    token = tl.program_id(1).to(tl.int64)
    x = tl.load(x_ptr + token * H + cols, mask=inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / H + EPS) * norm
    normed = normed.to(normed_ptr.dtype.element_ty).to(tl.float32)
    here = tl.where(tl.program_id(0) == 0, H, 0)
    tl.store(normed_ptr + token * H + cols, (normed * factor).to(normed_ptr.dtype.element_ty), mask=cols < here)
    y = tl.sum(weight.to(tl.float32) * normed[None, :], axis=1) + bias
    tl.store(out_ptr + token * N + n, y, mask=n < N)
