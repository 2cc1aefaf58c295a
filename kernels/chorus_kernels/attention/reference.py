"""Grouped-query attention with sinks, causal, over all positions or a sliding window; and the gathers of its KV.

    p = softmax([sink_h, scale * q k_0, scale * q k_1, ...]) over the visible positions;  y = sum_j p_j v_j

The sink is a learned logit per query head that takes part in the softmax and has no value. Query head h reads KV head
h // (Hq / Hkv). Position j is visible from i when j <= i and, with a window W, j > i - W (W positions, i among them).

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025), section 2.3; Xiao et al., "Efficient Streaming Language
Models with Attention Sinks" (2023).
"""

import torch
from torch import Tensor


def visibility(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Which keys a query sees: int64 [T] and int64 [L] to bool [T, L]."""
    distance = query_positions.unsqueeze(-1) - key_positions
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    *,
    query_positions: Tensor,
    key_positions: Tensor,
    window: int | None,
) -> Tensor:
    """Attention of one sequence, as the formula reads.

    q: [T, Hq, D]; k, v: [L, Hkv, D]; sinks: [Hq]; positions: int64 [T] and [L]; returns q's dtype [T, Hq, D]. Computed
    in float32 with scale 1 / sqrt(D). Keys that no query may see may hold anything finite.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = k.float().repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    scores = torch.einsum("thd,lhd->htl", q.float(), keys) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~visibility(query_positions, key_positions, window), float("-inf"))
    sink = sinks.float().view(-1, 1, 1).expand(-1, q.shape[0], 1)
    probabilities = torch.cat((sink, scores), -1).softmax(-1)[..., 1:]
    return torch.einsum("htl,lhd->thd", probabilities, values).to(q.dtype)


def batched_attention(q: Tensor, kv: Tensor, sinks: Tensor, mask: Tensor | None, num_queries: int = 1) -> Tensor:
    """The same for S sequences with T queries each, on gathered KV whose entry 0 is the sink's: three products' cost.

    q: [Hkv, S, G * T, D], row g * T + t is query t of the group's head g; kv: [Hkv, S, 1 + L, 2 * D], keys before
    values, with entry 0 all zeros; sinks: [Hkv * G]; mask: [S, 1, T, 1 + L], 0 where visible (entry 0 always), else
    -inf; None if all is visible; num_queries: T. All float32. Returns [Hkv, S, G * T, D].
    """
    num_kv_heads, num_sequences, num_rows, head_dim = q.shape
    flat = kv.flatten(0, 1)
    keys, values = flat[..., :head_dim], flat[..., head_dim:]
    scores = torch.bmm(q.flatten(0, 1), keys.transpose(1, 2)).mul_(head_dim**-0.5)
    by_head = scores.view(num_kv_heads, num_sequences, -1, num_queries, scores.shape[-1])
    if mask is not None:
        by_head.add_(mask)
    by_head[..., 0] = sinks.view(num_kv_heads, 1, -1, 1)
    return torch.bmm(scores.softmax(-1), values).view(num_kv_heads, num_sequences, num_rows, head_dim)


def paged_rows(block_table: Tensor, block_size: int) -> Tensor:
    """The rows of a paged KV memory in the order of positions: int64 [B] block numbers to int64 [B * block_size]."""
    offsets = torch.arange(block_size, device=block_table.device)
    return (block_table.unsqueeze(-1) * block_size + offsets).flatten(-2)
