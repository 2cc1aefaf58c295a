"""The demo model as it is trained: gpt-oss's forward pass over rows of packed documents.

All experts are computed for every token and weighted by the router, zero for those not chosen: at this size two large
matrix products are faster than picking. Parameters are fp32; the products run in bf16 under autocast.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from demo.config import ModelConfig
from demo.mxfp4 import straight_through


def rope_tables(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """YaRN's cos and sin, fp32 [length, head_dim / 2] (Peng et al. 2023, with gpt-oss's untruncated ramp)."""
    dim, base = config.head_dim, config.rope_theta

    def correction(rotations: float) -> float:
        return dim * math.log(config.rope_original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(correction(32.0), 0), min(correction(1.0), dim - 1)
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    frequencies = frequencies / config.rope_factor * ramp + frequencies * (1 - ramp)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    concentration = 0.1 * math.log(config.rope_factor) + 1
    return angles.cos() * concentration, angles.sin() * concentration


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


# A bool tensor [rows, 1, length, length], or what flex attention makes of it.
Mask = Tensor | BlockMask


def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Mask) -> Tensor:
    """softmax over the scores and the head's sink, the sink's share dropped; q [rows, heads, length, dim]."""
    scale = q.shape[-1] ** -0.5
    if isinstance(mask, BlockMask):
        out, log_sum = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=True, return_lse=True)
        return out * torch.sigmoid(log_sum - sinks[:, None])[..., None].to(out.dtype)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = ((q @ k.mT).float() * scale).masked_fill(~mask, -1e9)
    log_sum = torch.logaddexp(scores.logsumexp(-1), sinks[:, None])
    return torch.exp(scores - log_sum[..., None]).to(v.dtype) @ v


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(hidden, config.num_heads * dim)
        self.k_proj = nn.Linear(hidden, config.num_kv_heads * dim)
        self.v_proj = nn.Linear(hidden, config.num_kv_heads * dim)
        self.o_proj = nn.Linear(config.num_heads * dim, hidden)
        nn.init.zeros_(self.o_proj.weight)
        self.sinks = nn.Parameter(torch.zeros(config.num_heads))
        self.dim = dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        """x [rows, length, hidden], cos and sin [rows, length, 1, dim / 2]."""
        rows, length, _ = x.shape
        q = rotate(self.q_proj(x).view(rows, length, -1, self.dim), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x).view(rows, length, -1, self.dim), cos, sin).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, -1, self.dim).transpose(1, 2)
        out = attend(q, k, v, self.sinks, mask)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return projected


class Experts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        e, h, i = config.num_experts, config.hidden_size, config.intermediate_size
        self.config = config
        self.router = nn.Linear(h, e)
        # Rows alternate gate, up, gate, up, as the checkpoint has them.
        self.gate_up_proj = nn.Parameter(torch.randn(e, 2 * i, h) * h**-0.5)
        self.gate_up_bias = nn.Parameter(torch.zeros(e, 2 * i))
        self.down_proj = nn.Parameter(torch.randn(e, h, i) * i**-0.5 * 0.3)
        self.down_bias = nn.Parameter(torch.zeros(e, h))

    def forward(self, x: Tensor, blend: Tensor) -> tuple[Tensor, Tensor]:
        """x [tokens, hidden] -> (out [tokens, hidden], the share of tokens times probability, summed over experts)."""
        config = self.config
        logits = self.router(x).float()
        top, chosen = logits.topk(config.experts_per_token, dim=-1)
        weights = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1))
        used = (weights > 0).float().mean(0)
        balance = config.num_experts * (used * logits.softmax(-1).mean(0)).sum() / config.experts_per_token
        gate_up = F.linear(x, straight_through(self.gate_up_proj, blend).flatten(0, 1), self.gate_up_bias.flatten())
        gate_up = gate_up.view(-1, config.num_experts, config.intermediate_size, 2)
        gate, up = gate_up.float().unbind(-1)
        gate, up = gate.clamp(max=config.swiglu_limit), up.clamp(-config.swiglu_limit, config.swiglu_limit)
        active = gate * torch.sigmoid(gate * config.swiglu_alpha) * (up + 1) * weights[..., None]
        down = straight_through(self.down_proj, blend).transpose(0, 1).flatten(1)
        out = F.linear(active.flatten(1).to(gate_up.dtype), down) + weights @ self.down_bias
        return out, balance


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.experts = Experts(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask, blend: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out, balance = self.experts(self.post_attention_layernorm(x).flatten(0, 1), blend)
        return x + out.view(x.shape), balance


class DemoModel(nn.Module):
    """`rows` is the number of kept vocabulary rows; token numbers are rows, not ids."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, rows: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.randn(rows, config.hidden_size) * 0.3)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Parameter(torch.randn(rows, config.hidden_size) * 0.01)
        cos, sin = rope_tables(config, max_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, masks: tuple[Mask, Mask], wanted: Tensor, blend: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [len(wanted), rows] at the flat indices `wanted`, and the mean balance of the layers' routers.

        tokens, positions: int64 [rows, length]; masks: see `masks_of`.
        """
        half = torch.bfloat16 if torch.is_autocast_enabled(tokens.device.type) else torch.float32
        x = F.embedding(tokens, self.embed_tokens.to(half)).float()
        cos, sin = self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)
        balances = []
        for i, layer in enumerate(self.layers):
            x, balance = layer(x, cos, sin, masks[i % 2], blend)
            balances.append(balance)
        x = self.norm(x).flatten(0, 1)[wanted]
        return F.linear(x, self.lm_head), torch.stack(balances).mean()


def masks_of(documents: Tensor, window: int, dense: bool = False) -> tuple[Mask, Mask]:
    """What each position may see: its own document up to itself, the last `window` tokens of it (first mask: even
    layers) or all (second). `documents`, int64 [rows, length], numbers the documents side by side in a row (0: none).
    """

    def all_before(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (documents[row, query] == documents[row, key]) & (query >= key)

    def near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return all_before(row, head, query, key) & (query - key < window)

    rows, length = documents.shape
    if documents.is_cuda and not dense:
        made = [
            create_block_mask(mask, rows, None, length, length, device=documents.device) for mask in (near, all_before)
        ]
        return made[0], made[1]
    index = torch.arange(length, device=documents.device)
    full = (documents[:, :, None] == documents[:, None, :]) & (index[:, None] >= index)
    return (full & (index[:, None] - index < window))[:, None], full[:, None]
