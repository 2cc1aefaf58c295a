"""Arithmetic that the interpreter lacks or does in another way than a GPU."""

import triton
import triton.language as tl

# The interpreter has neither inline assembly nor bfloat16 arithmetic.
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 to DTYPE, to the nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # Its own conversion cuts off.
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        y = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(DTYPE)
    return y
