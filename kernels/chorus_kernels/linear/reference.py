"""Matrix products of the dense layers."""

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b. x: [T, K]; weight: [N, K]; bias: [N] or None; all of one floating dtype; returns [T, N]."""
    return torch.nn.functional.linear(x, weight, bias)


def embedding(token_ids: Tensor, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of an embedding matrix. token_ids: int64 or int32 [T]; weight: [R, H] of any dtype; returns dtype [T, H]."""
    return weight.index_select(0, token_ids).to(dtype)
