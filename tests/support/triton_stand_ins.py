"""PyTorch in the place of the Triton runner's slowest kernels, where they would run in the interpreter."""

import pytest
import torch
from torch import Tensor

from chorus_kernels.moe import experts_forward
from chorus_kernels.moe.layout import PackedExperts, unpack_expert
from chorus_kernels.norm_rope import rms_norm
from chorus_workers.runner.triton import transformer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the dense product and the experts give way to PyTorch."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(transformer, "linear", plain_linear)
        monkeypatch.setattr(transformer, "expert_rows", plain_expert_rows)
        monkeypatch.setattr(transformer, "expert_sum", plain_expert_sum)


def plain_linear(
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
) -> Tensor:
    if norm is not None:
        x = rms_norm(x.float(), norm[0].float(), norm[1])
    y = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    y = (y if residual is None else y + residual.float()).to(out_dtype or weight.dtype)
    return y if out is None else out.copy_(y)


def plain_expert_rows(
    x: Tensor,
    experts: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    *,
    alpha: float,
    limit: float,
    first_expert: int,
    x_factor: float,
    progress: Tensor | None = None,
) -> Tensor:
    unpacked = [torch.stack([unpack_expert(p, e) for e in range(p.num_experts)]) for p in (gate_up, down)]
    slots = experts.long().view(-1, 1)
    return experts_forward(
        x.float().repeat_interleave(experts.shape[1], 0) / x_factor, slots, torch.ones(slots.shape), unpacked[0],
        gate_up_bias.float(), unpacked[1], down_bias.float(), alpha=alpha, limit=limit, first_expert=first_expert,
    )  # fmt: skip


def plain_expert_sum(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: PackedExperts,
    gate_up_bias: Tensor,
    down: PackedExperts,
    down_bias: Tensor,
    residual: Tensor,
    *,
    alpha: float,
    limit: float,
    first_expert: int,
    x_factor: float,
) -> Tensor:
    rows = plain_expert_rows(
        x, experts, gate_up, gate_up_bias, down, down_bias,
        alpha=alpha, limit=limit, first_expert=first_expert, x_factor=x_factor,
    )  # fmt: skip
    total = (rows.view(*experts.shape, down.num_rows) * weights.unsqueeze(-1)).sum(1)
    return (residual.float() + total).to(residual.dtype)
