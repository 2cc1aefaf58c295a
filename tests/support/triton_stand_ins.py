"""PyTorch in the place of the Triton runner's slowest kernels, where they would run in the interpreter."""

import pytest
import torch
from torch import Tensor

from chorus_kernels.moe import experts_forward
from chorus_kernels.moe.expert_layer import ExpertLayer
from chorus_kernels.moe.layout import unpack_expert
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
    batch_invariant: bool = False,
) -> Tensor:
    if norm is not None:
        x = rms_norm(x.float(), norm[0].float(), norm[1])
    y = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    y = (y if residual is None else y + residual.float()).to(out_dtype or weight.dtype)
    return y if out is None else out.copy_(y)


def plain_expert_rows(
    x: Tensor, experts: Tensor, layer: ExpertLayer, *, x_factor: float, progress: Tensor | None = None
) -> Tensor:
    gate_up, down = (
        torch.stack([unpack_expert(packed, expert) for expert in range(packed.num_experts)])
        for packed in (layer.gate_up, layer.down)
    )
    slots = experts.long().view(-1, 1)
    return experts_forward(
        x.float().repeat_interleave(experts.shape[1], 0) / x_factor,
        slots,
        torch.ones(slots.shape),
        gate_up,
        layer.gate_up_bias.float(),
        down,
        layer.down_bias.float(),
        alpha=layer.alpha,
        limit=layer.limit,
        first_expert=layer.first_expert,
    )


def plain_expert_sum(
    x: Tensor, experts: Tensor, weights: Tensor, layer: ExpertLayer, residual: Tensor, *, x_factor: float
) -> Tensor:
    rows = plain_expert_rows(x, experts, layer, x_factor=x_factor)
    total = (rows.view(*experts.shape, layer.width) * weights.unsqueeze(-1)).sum(1)
    return (residual.float() + total).to(residual.dtype)
