"""Mixture of experts with clamped SwiGLU, as gpt-oss has it.

    w = softmax of the top-k router logits;  y = sum_k w_k (down_e act(gate_up_e x + b_e) + c_e),  e = e_k
    act: gate, up = even and odd rows;  gate' = min(gate, limit);  up' = clamp(up, -limit, limit)
         act = gate' sigmoid(alpha gate') (up' + 1)

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025), section 2.2; alpha 1.702, limit 7.
"""

from typing import Protocol

import torch
from torch import Tensor


class ExpertMatrices(Protocol):
    """The matrices of a layer's experts, [N, K] each: a tensor [E, N, K], or something that unpacks on demand."""

    def __getitem__(self, expert: int, /) -> Tensor: ...


def route(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Picks each token's experts: float [T, E] to expert numbers int64 [T, top_k], largest logit first, and weights
    float [T, top_k], a softmax over the chosen."""
    logits, experts = router_logits.topk(top_k, -1)
    return experts, logits.softmax(-1)


def swiglu(gate_up: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """Clamped SwiGLU over interleaved gate (even) and up (odd) columns: [..., 2 I] to [..., I]."""
    gate = gate_up[..., ::2].clamp(max=limit)
    up = gate_up[..., 1::2].clamp(-limit, limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.add_(1.0))


def experts_forward(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    gate_up: ExpertMatrices,
    gate_up_bias: Tensor,
    down: ExpertMatrices,
    down_bias: Tensor,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    first_expert: int = 0,
) -> Tensor:
    """The weighted sum of each token's experts, computed expert by expert over the tokens that chose it.

    x: [T, H]; experts: int64 [T, K]; weights: [T, K]; gate_up: matrices [2 I, H]; gate_up_bias: [E, 2 I]; down:
    matrices [H, I]; down_bias: [E, H]; returns [T, H], of x's floating dtype. The matrices given are those of experts
    first_expert to first_expert + E - 1; what a token has routed elsewhere adds nothing (another shard adds it).
    """
    num_tokens, top_k = experts.shape
    num_experts = gate_up_bias.shape[0]
    local = (experts - first_expert).flatten()  # [T * K]
    if num_tokens == 1:
        order, sizes = None, None
        spans = [(e, slot, slot + 1) for slot, e in enumerate(local.tolist()) if 0 <= e < num_experts]
    else:
        local = torch.where((local >= 0) & (local < num_experts), local, num_experts)
        order = local.argsort(stable=True)
        sizes = torch.bincount(local, minlength=num_experts + 1).tolist()
        spans = _spans(sizes[:num_experts])
    rows = x.expand(top_k, -1) if order is None else x.index_select(0, order // top_k)
    hidden = x.new_empty(num_tokens * top_k, gate_up_bias.shape[1])
    for e, start, end in spans:
        torch.addmm(gate_up_bias[e], rows[start:end], gate_up[e].t(), out=hidden[start:end])
    hidden = swiglu(hidden, alpha, limit)
    out = x.new_zeros(num_tokens * top_k, x.shape[1])
    for e, start, end in spans:
        torch.addmm(down_bias[e], hidden[start:end], down[e].t(), out=out[start:end])
    if order is not None:
        out = torch.empty_like(out).index_copy_(0, order, out)
    return torch.bmm(weights.unsqueeze(1), out.view(num_tokens, top_k, x.shape[1])).squeeze(1)


def _spans(sizes: list[int]) -> list[tuple[int, int, int]]:
    """(expert, start, end) of each expert with tokens, where tokens are sorted by expert."""
    spans, start = [], 0
    for expert, size in enumerate(sizes):
        if size:
            spans.append((expert, start, start + size))
        start += size
    return spans
