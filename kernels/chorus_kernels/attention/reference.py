"""Grouped-query attention with sinks, causal, over all positions or a sliding window; and the gathers of its KV.

    p = softmax([sink_h, scale * q k_0, scale * q k_1, ...]) over the visible positions;  y = sum_j p_j v_j

The sink is a learned logit per query head that takes part in the softmax and has no value. Query head h reads KV head
h // (Hq / Hkv). Position j is visible from i when j <= i and, with a window W, j > i - W (W positions, i among them).

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025), section 2.3; Xiao et al., "Efficient Streaming Language
Models with Attention Sinks" (2023).
"""

import torch
from torch import Tensor

from chorus_kernels.norm_rope import apply_rope, rope_tables


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


def rope_table(max_position: int, inverse_frequencies: Tensor, concentration: float) -> Tensor:
    """What the rotating kernels read: float32 [max_position, D], the cosines of a position's D / 2 pairs and then their
    sines, as `rope_tables` has them. A step gathers its tokens' rows once for all layers."""
    positions = torch.arange(max_position, device=inverse_frequencies.device)
    cos, signed_sin = (table.squeeze(1) for table in rope_tables(positions, inverse_frequencies, concentration))
    half = inverse_frequencies.shape[0]
    return torch.cat((cos[:, :half], signed_sin[:, half:]), 1)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as a KV memory of the dtype keeps it: what is too large for float8_e4m3fn becomes its +-448."""
    # PyTorch's own conversion saturates or makes NaN, by its version.
    return (x.float().clamp(-448, 448) if dtype == torch.float8_e4m3fn else x).to(dtype)


def rope_split(
    qkv: Tensor, cos_sin: Tensor, *, num_kv_heads: int, kv_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates queries and keys of a fused projection. The arguments and results are those of `op.rope_split`."""
    heads = qkv.float().unflatten(-1, (-1, cos_sin.shape[1]))
    cos, sin = cos_sin.unsqueeze(1).chunk(2, -1)
    turned = apply_rope(heads[:, :-num_kv_heads], torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    q, k, v = turned[:, :-num_kv_heads], turned[:, -num_kv_heads:], heads[:, -num_kv_heads:]
    return q.to(qkv.dtype), rounded(k, kv_dtype or qkv.dtype), rounded(v, kv_dtype or qkv.dtype)


def write_kv(k: Tensor, v: Tensor, kv: Tensor, rows: Tensor) -> None:
    """kv[0, block, :, offset] = k[t] and kv[1, block, :, offset] = v[t] for row = block * block_size + offset >= 0."""
    kept = rows >= 0
    blocks, offsets = rows[kept].long() // kv.shape[3], rows[kept].long() % kv.shape[3]
    kv[0, blocks, :, offsets] = rounded(k[kept], kv.dtype)
    kv[1, blocks, :, offsets] = rounded(v[kept], kv.dtype)


def decode_attention(
    q: Tensor, kv: Tensor, block_tables: Tensor, lengths: Tensor, sinks: Tensor, *, ring: bool
) -> Tensor:
    """One query per sequence, sequence after sequence. The arguments and results are those of `op.decode_attention`."""
    out = torch.zeros_like(q)
    for s, length in enumerate(lengths.tolist()):
        if length:
            last = torch.arange(min(length, kv.shape[3]) if ring else length, device=q.device)
            k, v = _rows(kv, block_tables[s], last)
            # Of a ring, rows and not positions: all of them are visible, in any order.
            out[s] = attention(
                q[s : s + 1], k, v, sinks, query_positions=last[-1:], key_positions=last, window=None
            ).squeeze(0)
    return out


def prefill_attention(
    q: Tensor,
    kv: Tensor,
    block_tables: Tensor,
    cu_tokens: Tensor,
    starts: Tensor,
    sinks: Tensor,
    *,
    window: int | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    """Chunk after chunk. The arguments and results are those of `op.prefill_attention`."""
    out = torch.zeros_like(q)
    for chunk, start in enumerate(starts.tolist()):
        tokens = slice(int(cu_tokens[chunk]), int(cu_tokens[chunk + 1]))
        end = start + tokens.stop - tokens.start
        if window is None:
            first = 0
            keys, values = _rows(kv, block_tables[chunk], torch.arange(end, device=q.device))
        else:
            assert k is not None and v is not None
            first = max(0, start - window + 1)
            before = _rows(kv, block_tables[chunk], torch.arange(first, start, device=q.device) % window)
            keys, values = (torch.cat(pair) for pair in zip(before, (k[tokens], v[tokens]), strict=True))
        out[tokens] = attention(
            q[tokens],
            keys,
            values,
            sinks,
            query_positions=torch.arange(start, end, device=q.device),
            key_positions=torch.arange(first, end, device=q.device),
            window=window,
        )
    return out


def _rows(kv: Tensor, block_table: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [L, Hkv, D] at these places of a sequence's blocks: int64 [L]."""
    blocks, offsets = block_table.long()[places // kv.shape[3]], places % kv.shape[3]
    return kv[0, blocks, :, offsets], kv[1, blocks, :, offsets]
