"""The experts' activation."""

import triton
import triton.language as tl


@triton.jit
def swiglu(gate, up, alpha, limit):
    # Clamping must not hide NaN.
    gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
    up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL)
    return gate / (1.0 + tl.exp(-alpha * gate)) * (up + 1.0)
