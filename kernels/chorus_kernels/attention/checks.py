"""Checks of the attention ops' arguments: each raises ValueError that names the argument and what would be right."""

from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float32)
_KV_DTYPES = (*_DTYPES, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class Memory:
    """The sizes of one layer's KV memory, and the strides of its parts and blocks."""

    num_kv_heads: int
    block_size: int
    head_dim: int
    strides: tuple[int, int]


def memory(kv: Tensor) -> Memory:
    inner = (kv.shape[3] * kv.shape[4], kv.shape[4], 1) if kv.ndim == 5 else ()
    _require(
        kv.ndim == 5 and kv.shape[0] == 2 and kv.stride()[2:] == inner and kv.dtype in _KV_DTYPES,
        "kv must be bfloat16, float32 or float8_e4m3fn [2, blocks, Hkv, block_size, D], the last three dimensions "
        "contiguous",
        kv,
    )
    return Memory(kv.shape[2], kv.shape[3], kv.shape[4], (kv.stride(0), kv.stride(1)))


def heads(name: str, x: Tensor, num_heads: int, head_dim: int, dtype: torch.dtype | None = None) -> None:
    _require(
        x.ndim == 3 and x.shape[1:] == (num_heads, head_dim) and x.stride(2) == 1 and x.dtype in (dtype or x.dtype,),
        f"{name} must be {dtype or 'floating'} [T, {num_heads}, {head_dim}], the last dimension contiguous",
        x,
    )


def queries(q: Tensor, memory: Memory, packed: bool = True) -> int:
    """Returns the number of query heads."""
    _require(
        q.ndim == 3
        and q.dtype in _DTYPES
        and q.shape[2] == memory.head_dim
        and q.shape[1] > 0
        and q.shape[1] % memory.num_kv_heads == 0
        and q.stride(2) == 1
        and (not packed or q.stride(1) == memory.head_dim),
        f"q must be bfloat16 or float32 [rows, a multiple of {memory.num_kv_heads}, {memory.head_dim}] with contiguous "
        f"{'heads' if packed else 'last dimension'}",
        q,
    )
    return q.shape[1]


def projection(qkv: Tensor, cos_sin: Tensor, num_kv_heads: int, head_dim: int) -> int:
    """Returns the number of query heads."""
    _require(
        cos_sin.ndim == 2
        and cos_sin.dtype == torch.float32
        and cos_sin.is_contiguous()
        and cos_sin.shape[1] == head_dim
        and head_dim % 2 == 0,
        f"cos_sin must be contiguous float32 [T, {head_dim}], with an even head dimension",
        cos_sin,
    )
    num_heads = qkv.shape[-1] // head_dim - 2 * num_kv_heads
    _require(
        qkv.ndim == 2
        and qkv.dtype in _DTYPES
        and qkv.stride(1) == 1
        and qkv.shape[1] % head_dim == 0
        and num_heads > 0
        and num_heads % num_kv_heads == 0,
        f"qkv must be bfloat16 or float32 [T, (Hq + 2 * {num_kv_heads}) * {head_dim}], the last dimension contiguous",
        qkv,
    )
    return num_heads


def index(name: str, x: Tensor, ndim: int) -> Tensor:
    _require(
        x.dtype == torch.int32 and x.ndim == ndim and (x.numel() == 0 or x.stride(-1) == 1),
        f"{name} must be int32 with {ndim} dimensions, the last contiguous",
        x,
    )
    return x


def table(block_tables: Tensor, ring: bool) -> None:
    index("block_tables", block_tables, 2)
    wanted = "[rows, 1], a slot each" if ring else "[rows, at least 1]"
    _require(
        block_tables.shape[1] == 1 if ring else block_tables.shape[1] > 0,
        f"block_tables must be {wanted}",
        block_tables,
    )


def vector(name: str, x: Tensor, size: int) -> None:
    _require(
        x.shape == (size,) and x.is_contiguous() and x.is_floating_point(), f"{name} must be contiguous [{size}]", x
    )


def same_rows(**tensors: Tensor) -> None:
    if len({x.shape[0] for x in tensors.values()}) > 1:
        counts = ", ".join(f"{name} {x.shape[0]}" for name, x in tensors.items())
        raise ValueError(f"the first dimensions must be equal: {counts}")


def same_device(like: Tensor, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, not on {x.device}")


def output(name: str, given: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`given`, or a new tensor of `like`'s dtype on its device."""
    if given is None:
        return like.new_empty(shape)
    _require(
        given.shape == shape and given.dtype == like.dtype and given.is_contiguous() and given.device == like.device,
        f"{name} must be contiguous {like.dtype} {list(shape)} on {like.device}",
        given,
    )
    return given


def scratch(given: Tensor | None, size: int, device: torch.device) -> Tensor:
    if given is None:
        return torch.empty(size, dtype=torch.float32, device=device)
    _require(
        given.dtype == torch.float32 and given.is_contiguous() and given.numel() >= size and given.device == device,
        f"scratch must be contiguous float32 of at least {size} elements on {device}",
        given,
    )
    return given.view(-1)[:size]


def _require(right: bool, wanted: str, x: Tensor) -> None:
    if not right:
        raise ValueError(f"{wanted}; not {x.dtype} {list(x.shape)} with strides {list(x.stride())} on {x.device}")
