"""Device code of RMSNorm: one program a row, the row in registers."""

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [T, H]
    residual_ptr,  # [T, H], with ADD
    weight_ptr,  # [H]
    out_ptr,  # [T, H]
    new_residual_ptr,  # [T, H], with ADD
    H: tl.constexpr,
    EPS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * H
    cols = tl.arange(0, BLOCK)  # [BLOCK]
    inside = cols < H
    # The weight doesn't depend on other kernels: its load is issued first.
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + start + cols, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total = x + tl.load(residual_ptr + start + cols, mask=inside, other=0.0).to(tl.float32)
        stored = total.to(new_residual_ptr.dtype.element_ty)
        tl.store(new_residual_ptr + start + cols, stored, mask=inside)
        # Of the sum as it is stored: whoever norms the stored sum later gets the same bits.
        x = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / H + EPS)
    tl.store(out_ptr + start + cols, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)
