"""`reference.gather` as one launch, into buffers that are there: what a CUDA graph reads keeps its place."""

import torch
import triton
from torch import Tensor

from chorus_kernels.decode_inputs._kernel import gather_kernel
from chorus_kernels.decode_inputs.reference import GatheredInputs

_BLOCK = 1024


def gather(
    sent: Tensor,
    last_tokens: Tensor,
    embedding: Tensor,
    embedding_rows: Tensor | None,
    rope: Tensor,
    tables: Tensor,
    *,
    page_size: int,
    out: GatheredInputs,
) -> None:
    """Fills `out` as `reference.gather` tells, but for a block table's entries behind the pages (of `page_size`
    positions) that the sequence sees: these keep what they held.

    Tokens, positions and slots aren't looked at: what they name must be there. Errors: ValueError for other shapes,
    dtypes or devices, or tensors that aren't contiguous.
    """
    num_sequences = sent.shape[-1]
    width, head_dim, num_pages = embedding.shape[-1], rope.shape[-1], tables.shape[-1]
    _check("sent", sent, (4, num_sequences), torch.int32, sent.device)
    _check("last_tokens", last_tokens, (tables.shape[0],), torch.int32, sent.device)
    _check("embedding", embedding, (embedding.shape[0], width), out.x.dtype, sent.device)
    if embedding_rows is not None:
        _check("embedding_rows", embedding_rows, (embedding_rows.numel(),), torch.int64, sent.device)
    _check("rope", rope, (rope.shape[0], head_dim), torch.float32, sent.device)
    _check("tables", tables, (tables.shape[0], num_pages), torch.int32, sent.device)
    _check("out.x", out.x, (num_sequences, width), embedding.dtype, sent.device)
    _check("out.cos_sin", out.cos_sin, (num_sequences, head_dim), torch.float32, sent.device)
    _check("out.block_tables", out.block_tables, (num_sequences, num_pages), torch.int32, sent.device)
    _check("out.lengths", out.lengths, (num_sequences,), torch.int32, sent.device)
    _check("out.slots", out.slots, (num_sequences, 1), torch.int32, sent.device)
    if not num_sequences:
        return
    gather_kernel[(num_sequences, triton.cdiv(max(width, head_dim, num_pages), _BLOCK))](
        sent, last_tokens, embedding, embedding_rows, rope, tables,
        out.x, out.cos_sin, out.block_tables, out.lengths, out.slots, num_sequences, num_pages,
        H=width, D=head_dim, PAGE=page_size, HAS_ROWS=embedding_rows is not None, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {list(shape)} of {dtype} on {device}, "
            f"not {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        )
