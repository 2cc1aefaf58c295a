"""Dense products on the device: QKV, attention output, router, output head."""

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import NOT_DEPENDENT, dependent_launch
from chorus_kernels.linear import _invariant_kernel, _kernel, _vector_kernel
from chorus_kernels.linear.layout import tiles_shape

# Up to here the weight's bytes are the cost, and our kernels read them nearly at the memory's speed; beyond, cuBLAS.
MAX_TOKENS: int = _kernel.TOKENS.value
# Up to here without tensor cores, and with the norm of the tokens, if one is wanted.
MAX_VECTOR_TOKENS = 2
# Above that and up to here, a weight's tiles are faster to read than its rows.
MAX_TILED_TOKENS = 8
# Tiles of the vector kernel, and the registers a thread that let five or six programs run on a multiprocessor.
_VECTOR_ROWS, _VECTOR_COLUMNS, _VECTOR_REGISTERS = 4, 1024, {1: 80, 2: 96}
_OUT_DTYPES = (torch.bfloat16, torch.float32)
# The batch-invariant product's rows, tokens, columns, warps and stages, by the most tokens. The bits are the same.
_INVARIANT_TILES = {
    16: (64, 16, 128, 4, 5),
    32: (64, 32, 128, 4, 4),
    64: (64, 64, 128, 4, 4),
    512: (64, 128, 64, 4, 4),
}
_INVARIANT_LARGE = (128, 256, 64, 8, 4)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    *,
    tiles: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    overlap: bool = True,
    hold_next: bool = False,
    batch_invariant: bool = False,
) -> Tensor:
    """y = x W^T + bias + residual, or with `norm`, a weight and an epsilon, RMSNorm(x) W^T + bias + residual.

    x: bfloat16 [T, K]; weight: bfloat16 [N, K]; bias: [N], bfloat16 or float32; residual: [T, N], bfloat16 or float32;
    the norm's weight: [K], bfloat16 or float32; all contiguous. Returns out_dtype [T, N], bfloat16 (the default) or
    float32: `out`, if it is given, which may be the residual.

    tiles: `layout.tiled` of the weight, which is read instead of it from MAX_VECTOR_TOKENS + 1 to MAX_TILED_TOKENS; the
    result is the same.

    overlap: whether the kernel before may still run while the first weights are loaded (if it lets this one begin, and
    the device can); the weight and the bias must be at rest. hold_next: whether the next kernel is to begin at this
    one's end at the earliest, with more than MAX_VECTOR_TOKENS.

    batch_invariant: whether a token's bits must not depend on how many there are; slower, without tiles and norm. Sums
    are float32, in the order of K, rounded once at the end; what follows is of sums without it.

    Sums are float32, rounded once at the end, in an order that depends on K alone: up to MAX_VECTOR_TOKENS tokens, of
    exact products, with the norm not rounded before; up to MAX_TOKENS in another order. Above: cuBLAS, whose order
    depends on T too; in bfloat16 its product and bias are rounded before the residual is added, unless there is no bias
    and the residual is `out`.
    Errors: ValueError for other shapes, dtypes, strides or devices, and for a norm of more than MAX_VECTOR_TOKENS.
    """
    out_dtype = torch.bfloat16 if out_dtype is None else out_dtype
    _check(x, weight, bias, residual, out_dtype, out, None if norm is None else norm[0])
    if norm is not None and x.shape[0] > MAX_VECTOR_TOKENS:
        raise ValueError(f"a norm goes with {MAX_VECTOR_TOKENS} tokens at most, not {x.shape[0]}")
    num_tokens, depth = x.shape
    num_rows = weight.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_rows, dtype=out_dtype, device=x.device)
    elif list(out.shape) != [num_tokens, num_rows] or out.dtype != out_dtype:
        raise ValueError(f"out must be {[num_tokens, num_rows]} of {out_dtype}, not {list(out.shape)} of {out.dtype}")
    if batch_invariant:
        if norm is not None or tiles is not None:
            raise ValueError("a batch-invariant product takes no norm and no tiles")
        return _invariant(x, weight, bias, residual, out)
    if num_tokens > MAX_TOKENS:
        return _cublas(x, weight, bias, residual, out)
    if tiles is not None:
        _check_tiles(tiles, weight)
    if not out.numel():
        return out
    dependent = dependent_launch(x.device) if overlap else NOT_DEPENDENT
    if num_tokens <= MAX_VECTOR_TOKENS:
        norm_weight, eps = norm or (None, 0.0)
        blocks = triton.cdiv(depth, _VECTOR_COLUMNS)
        _vector_kernel.vector_kernel[(triton.cdiv(num_rows, _VECTOR_ROWS),)](
            x, norm_weight, weight, bias, residual, out, num_rows, K=depth, TOKENS=num_tokens, ROWS=_VECTOR_ROWS,
            BLOCK=_VECTOR_COLUMNS, AHEAD=blocks // 2, EPS=eps, HAS_NORM=norm is not None, HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None, num_warps=4, num_stages=1, maxnreg=_VECTOR_REGISTERS[num_tokens],
            **dependent,
        )  # fmt: skip
    else:
        if num_tokens > MAX_TILED_TOKENS:
            tiles = None
        _kernel.linear_kernel[(triton.cdiv(num_rows, _kernel.ROWS.value),)](
            x, weight if tiles is None else tiles, bias, residual, out, num_tokens, num_rows, K=depth,
            HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, HALVES=1 if num_tokens <= 8 else 2,
            TILED=tiles is not None, HOLD_NEXT=hold_next, num_warps=_kernel.WARPS.value, num_stages=1,
            **dependent,
        )  # fmt: skip
    return out


def _invariant(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor) -> Tensor:
    num_tokens, num_rows = out.shape
    if not out.numel():
        return out
    fitting = (tiles for most, tiles in _INVARIANT_TILES.items() if num_tokens <= most)
    rows, tokens, columns, num_warps, num_stages = next(fitting, _INVARIANT_LARGE)
    if x.shape[1] <= columns:
        # The compiler begins the sum of a loop of one pass with the bias: either in all variants or in none.
        columns = min(columns, 64)
    _invariant_kernel.invariant_kernel[(triton.cdiv(num_rows, rows) * triton.cdiv(num_tokens, tokens),)](
        x, weight, bias, residual, out, num_tokens, num_rows, K=x.shape[1], HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, ROWS=rows, TOKENS=tokens, BLOCK_K=columns, num_warps=num_warps,
        num_stages=num_stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def _cublas(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor) -> Tensor:
    if out is residual:
        if out.dtype == torch.bfloat16 and bias is None:
            return out.addmm_(x, weight.t())
        residual = out.clone()
    if out.dtype == torch.bfloat16:
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias.to(x.dtype), x, weight.t(), out=out)
        return out if residual is None else out.add_(residual)
    if x.is_cuda:
        torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
    else:
        torch.mm(x.float(), weight.float().t(), out=out)
    for addend in (bias, residual):
        if addend is not None:
            out += addend
    return out


def _check_tiles(tiles: Tensor, weight: Tensor) -> None:
    shape = tiles_shape(weight.shape[0], weight.shape[1])
    if tiles.shape != shape or tiles.dtype != weight.dtype or tiles.device != weight.device:
        raise ValueError(f"tiles must be the weight's, {list(shape)}, not {list(tiles.shape)} of {tiles.dtype}")
    if not tiles.is_contiguous():
        raise ValueError("tiles must be contiguous")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out_dtype: torch.dtype,
    out: Tensor | None,
    norm_weight: Tensor | None,
) -> None:
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must be [T, K] and weight [N, K], not {list(x.shape)} and {list(weight.shape)}")
    if x.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16:
        raise ValueError(f"x and weight must be bfloat16, not {x.dtype} and {weight.dtype}")
    if out_dtype not in _OUT_DTYPES:
        raise ValueError(f"out_dtype must be bfloat16 or float32, not {out_dtype}")
    shapes = {
        "bias": (bias, [weight.shape[0]]),
        "residual": (residual, [x.shape[0], weight.shape[0]]),
        "the norm's weight": (norm_weight, [x.shape[1]]),
    }
    for name, (addend, shape) in shapes.items():
        if addend is not None and (list(addend.shape) != shape or addend.dtype not in _OUT_DTYPES):
            raise ValueError(
                f"{name} must be {shape} of bfloat16 or float32, not {list(addend.shape)} of {addend.dtype}"
            )
    placed = {"x": x, "weight": weight, "out": out} | {name: addend for name, (addend, _) in shapes.items()}
    for name, tensor in placed.items():
        if tensor is not None and (not tensor.is_contiguous() or tensor.device != x.device):
            raise ValueError(f"{name} must be contiguous on {x.device}: strides {tensor.stride()} on {tensor.device}")
