"""Muon for the matrices, Adam for the rest; learning rates rise shortly, stay, and fall to zero over the last part.

Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 200
DECAY_SHARE = 0.9


def _orthogonalized(matrices: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrices; [n, out, in]."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    turned = x.shape[-2] > x.shape[-1]
    x = x.mT if turned else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        product = x @ x.mT
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    found: Tensor = x.mT if turned else x
    return found.float()


class Muon:
    """Momentum, orthogonalized, on parameters of two or three dimensions; equal shapes are handled together."""

    def __init__(
        self, parameters: list[nn.Parameter], learning_rate: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        self.learning_rate, self.momentum, self.decay = learning_rate, momentum, decay
        groups: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(groups.values())
        self._turn = torch.compile(_orthogonalized, dynamic=False) if parameters[0].is_cuda else _orthogonalized
        self._buffers = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        rate = self.learning_rate * scale
        for group, buffer in zip(self.groups, self._buffers, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = gradient.lerp(buffer, self.momentum)
            shape = update.shape
            update = self._turn(update.flatten(0, -3)).view(shape) * max(1.0, shape[-2] / shape[-1]) ** 0.5
            values: list[Tensor] = list(group)
            torch._foreach_mul_(values, 1 - rate * self.decay)
            torch._foreach_add_(values, list(update.unbind(0)), alpha=-rate)

    def buffers(self) -> list[Tensor]:
        return [buffer.cpu() for buffer in self._buffers]

    def load_buffers(self, saved: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, saved, strict=True):
            buffer.copy_(value)


class Optimizer:
    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float) -> None:
        named = list(model.named_parameters())
        matrices = [
            p
            for name, p in named
            if p.ndim >= 2
            and "_bias" not in name
            and not name.startswith(("embed", "lm_head"))
            and "router" not in name
        ]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self.muon = Muon(matrices, muon_rate)
        self.adam = torch.optim.AdamW(
            rest, lr=adam_rate, betas=(0.9, 0.97), eps=1e-10, weight_decay=0.0, fused=rest[0].is_cuda
        )
        self._adam_rate = adam_rate

    def step(self, scale: float) -> None:
        self.muon.step(scale)
        for group in self.adam.param_groups:
            group["lr"] = self._adam_rate * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for matrices in self.muon.groups:
            for parameter in matrices:
                parameter.grad = None


def rate_scale(step: int, progress: float) -> float:
    """The learning rate's factor at `step`, with a share `progress` of the training done."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, max(0.0, (1 - progress) / DECAY_SHARE))
