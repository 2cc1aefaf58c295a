"""The gpt-oss transformer of `chorus_workers.model.transformer`, on a device with fused kernels.

Decode tokens and prefill tokens share all products, and differ in attention: a decode sequence writes its token and
looks at its memory in one launch; a chunk in a window layer must look at the ring before it writes it.
"""

import torch
from torch import Tensor

from chorus_kernels.attention import op as attention
from chorus_kernels.attention import rope_table
from chorus_kernels.decode_inputs import GatheredInputs
from chorus_kernels.decode_inputs.op import gather
from chorus_kernels.linear.op import MAX_TILED_TOKENS, MAX_TOKENS, MAX_VECTOR_TOKENS, linear
from chorus_kernels.moe.layout import PackedExperts
from chorus_kernels.moe.op import (
    MAX_DECODE_TOKENS,
    ExpertLayer,
    combine_norm,
    expert_rows,
    expert_sum,
    operand_factor,
    route,
)
from chorus_kernels.norm_rope import yarn_concentration
from chorus_kernels.norm_rope.op import MAX_NORM_LINEAR_VALUES, norm_linear, rms_norm
from chorus_workers.model.transformer import rope_frequencies
from chorus_workers.model.weights import LayerWeights, Model
from chorus_workers.runner.triton.form import ProductTiles
from chorus_workers.runner.triton.kv_memory import DeviceKVMemory, copyable
from chorus_workers.runner.triton.step import AttentionInputs, DecodeInputs, PrefillInputs, StepInputs

Layer = LayerWeights[PackedExperts]


class DeviceTransformer:
    """A model whose weights and KV memory are on one device."""

    def __init__(
        self,
        model: Model[PackedExperts],
        memory: DeviceKVMemory,
        max_model_len: int,
        tiles: ProductTiles | None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        """tiles: of the model, if there are any: the same results, faster. batch_invariant: whether a token's bits must
        not depend on what else is in a step; then tiles are not used."""
        self.model, self.memory, self.batch_invariant = model, memory, batch_invariant
        # Of what comes behind each layer.
        self._following_norms = (*(layer.attention_norm for layer in model.layers[1:]), model.final_norm)
        self._tiles = tiles or ProductTiles.missing(len(model.layers))
        config, device = model.config, model.embedding.device
        concentration = yarn_concentration(config.rope.factor)
        self._rope = rope_table(max_model_len, rope_frequencies(config).to(device), concentration)
        first_expert = model.shard.span(config.num_experts).start
        self._experts = [
            ExpertLayer(
                layer.gate_up,
                layer.gate_up_bias,
                layer.down,
                layer.down_bias,
                alpha=config.swiglu_alpha,
                limit=config.swiglu_limit,
                first_expert=first_expert,
            )
            for layer in model.layers
        ]
        self._embedding_rows = model.vocabulary.embedding_rows
        if self._embedding_rows is not None:
            self._embedding_rows = self._embedding_rows.to(device)

    def gather(self, sent: Tensor, last_tokens: Tensor, tables: Tensor, out: GatheredInputs) -> None:
        """What a step of decode begins with, as `chorus_kernels.decode_inputs` tells."""
        gather(
            sent,
            last_tokens,
            self.model.embedding,
            self._embedding_rows,
            self._rope,
            tables,
            page_size=self.memory.block_size,
            out=out,
        )

    def decode(self, inputs: GatheredInputs) -> Tensor:
        """Writes the KV of one token of each sequence. Returns [S, H], normed for the output head; x is used up."""
        decode = DecodeInputs(inputs.lengths, inputs.block_tables, inputs.slots)
        return self._layers(inputs.x, inputs.cos_sin, AttentionInputs(len(inputs.x), decode, prefill=None))

    def forward(self, step: StepInputs) -> Tensor:
        """Writes the KV of the step's tokens. Returns [sampled tokens, H], normed for the output head."""
        rows = step.token_ids if self._embedding_rows is None else self._embedding_rows[step.token_ids]
        x = self.model.embedding.index_select(0, rows)
        normed = self._layers(x, self._rope.index_select(0, step.positions), step.attention)
        return normed if step.sampled_tokens is None else normed.index_select(0, step.sampled_tokens)

    def _layers(self, x: Tensor, cos_sin: Tensor, step: AttentionInputs) -> Tensor:
        """All layers and the final norm. x: [T, H], used up; cos_sin: float32 [T, D]."""
        if self.batch_invariant:
            return self._invariant(x, cos_sin, step)
        return (self._few if x.shape[0] <= MAX_VECTOR_TOKENS else self._several)(x, cos_sin, step)

    def _few(self, x: Tensor, cos_sin: Tensor, step: AttentionInputs) -> Tensor:
        """For so few tokens that norms are parts of the products."""
        config, model = self.model.config, self.model
        for index, layer in enumerate(model.layers):
            qkv = linear(x, layer.qkv, layer.qkv_bias, norm=(layer.attention_norm, config.rms_norm_eps))
            attended = self._attention(index, layer, qkv, cos_sin, step)
            x = linear(attended, layer.out, layer.out_bias, residual=x)
            normed, factor, chosen, weights = self._route(layer, x)
            x = expert_sum(normed, chosen, weights, self._experts[index], x, x_factor=factor)
        return rms_norm(x, model.final_norm, config.rms_norm_eps)

    def _several(self, x: Tensor, cos_sin: Tensor, step: AttentionInputs) -> Tensor:
        """For any number of tokens. A layer's sum and the norm of what follows it are one launch."""
        config, model = self.model.config, self.model
        normed = rms_norm(x, model.layers[0].attention_norm, config.rms_norm_eps)
        # With more tokens, loading its weights early would hold up the sum before it, which is short.
        overlap = x.shape[0] <= MAX_TILED_TOKENS
        # cuBLAS adds to what is there, or a bias: then the output's bias is in the residual before.
        adds = x.shape[0] > MAX_TOKENS
        following_biases = [*(layer.out_bias if adds else None for layer in model.layers[1:]), None]
        first_bias = model.layers[0].out_bias
        if adds and first_bias is not None:
            x += first_bias
        progress = None
        if x.shape[0] <= MAX_DECODE_TOKENS:
            progress = torch.empty(x.shape[0], config.num_experts_per_token, dtype=torch.int32, device=x.device)
        for index, layer in enumerate(model.layers):
            # Attention's programs would take places from those of QKV, where its own begin early.
            tiles = self._tiles.qkv[index]
            qkv = linear(normed, layer.qkv, layer.qkv_bias, tiles=tiles, overlap=overlap, hold_next=overlap)
            attended = self._attention(index, layer, qkv, cos_sin, step)
            if adds:
                linear(attended, layer.out, None, residual=x, out=x)
            else:
                x = linear(attended, layer.out, layer.out_bias, residual=x, tiles=self._tiles.out[index])
            normed, factor, chosen, weights = self._route(layer, x, progress)
            experts = self._experts[index]
            rows = expert_rows(normed, chosen, experts, x_factor=factor, progress=progress)
            normed, x = combine_norm(
                rows,
                chosen,
                weights,
                x,
                self._following_norms[index],
                config.rms_norm_eps,
                following_biases[index],
                num_experts=experts.num_experts,
                first_expert=experts.first_expert,
            )
        return normed

    def _invariant(self, x: Tensor, cos_sin: Tensor, step: AttentionInputs) -> Tensor:
        """For any number of tokens, with one way through the kernels whatever the number is."""
        config, model = self.model.config, self.model
        normed = rms_norm(x, model.layers[0].attention_norm, config.rms_norm_eps)
        for index, layer in enumerate(model.layers):
            qkv = linear(normed, layer.qkv, layer.qkv_bias, batch_invariant=True)
            attended = self._attention(index, layer, qkv, cos_sin, step)
            x = linear(attended, layer.out, layer.out_bias, residual=x, batch_invariant=True)
            normed = rms_norm(x, layer.mlp_norm, config.rms_norm_eps)
            scores = linear(normed, layer.router, out_dtype=torch.float32, batch_invariant=True)
            chosen, weights = route(scores, config.num_experts_per_token, layer.router_bias)
            experts = self._experts[index]
            normed, x = combine_norm(
                expert_rows(normed, chosen, experts, batch_invariant=True),
                chosen,
                weights,
                x,
                self._following_norms[index],
                config.rms_norm_eps,
                num_experts=experts.num_experts,
                first_expert=experts.first_expert,
                batch_invariant=True,
            )
        return normed

    def logits(self, normed: Tensor, out: Tensor | None = None) -> Tensor:
        """[S, H] of `forward` to float32 [S, N] over the vocabulary's rows; returns (or fills) out."""
        if self.model.head is None:
            raise ValueError("only shard 0 holds the output head")
        tiles = None if self.batch_invariant else self._tiles.head
        return linear(
            normed,
            self.model.head,
            out_dtype=torch.float32,
            out=out,
            tiles=tiles,
            batch_invariant=self.batch_invariant,
        )

    def _attention(self, index: int, layer: Layer, qkv: Tensor, cos_sin: Tensor, step: AttentionInputs) -> Tensor:
        """Returns [T, Hq * D]."""
        kv, window = self.memory.layers[index], self.model.config.windows[index]
        num_decode, head_dim = step.num_decode, self.model.config.head_dim
        out = qkv.new_empty(qkv.shape[0], layer.sinks.shape[0], head_dim)
        if step.decode is not None:
            tiles = attention.invariant_decode_tiles() if self.batch_invariant and window is None else None
            decode_out = out[:num_decode]
            _decode(step.decode, qkv[:num_decode], cos_sin[:num_decode], kv, layer.sinks, window, tiles, decode_out)
        if step.prefill is not None:
            _prefill(step.prefill, qkv[num_decode:], cos_sin[num_decode:], kv, layer.sinks, window, out[num_decode:])
        return out.flatten(1)

    def _route(self, layer: Layer, x: Tensor, progress: Tensor | None = None) -> tuple[Tensor, float, Tensor, Tensor]:
        """What the experts get, [T, H] normed and times a factor; the factor; which ones, and their weights."""
        top_k, eps = self.model.config.num_experts_per_token, self.model.config.rms_norm_eps
        if x.shape[0] * layer.router.shape[0] <= MAX_NORM_LINEAR_VALUES:
            factor = operand_factor(x.shape[0])
            normed, logits = norm_linear(x, layer.mlp_norm, eps, layer.router, layer.router_bias, factor)
            return normed, factor, *route(logits, top_k, progress=progress)
        normed = rms_norm(x, layer.mlp_norm, eps)
        logits = linear(normed, layer.router, out_dtype=torch.float32)
        return normed, 1.0, *route(logits, top_k, layer.router_bias, progress)


def _decode(
    step: DecodeInputs,
    qkv: Tensor,
    cos_sin: Tensor,
    kv: Tensor,
    sinks: Tensor,
    window: int | None,
    tiles: attention.DecodeTiles | None,
    out: Tensor,
) -> None:
    tables, ring = (step.block_tables, False) if window is None else (step.slots, True)
    attention.rope_decode_attention(qkv, cos_sin, kv, tables, step.lengths, sinks, ring=ring, tiles=tiles, out=out)


def _prefill(
    step: PrefillInputs, qkv: Tensor, cos_sin: Tensor, kv: Tensor, sinks: Tensor, window: int | None, out: Tensor
) -> None:
    chunks = (step.cu_tokens, step.starts, sinks, step.tile_map)
    if window is None:
        q = attention.rope_and_write(qkv, cos_sin, kv, step.page_rows)
        attention.prefill_attention(q, kv, step.block_tables, *chunks, out=out)
    else:
        q, k, v = attention.rope_split(qkv, cos_sin, num_kv_heads=kv.shape[2], kv_dtype=kv.dtype)
        attention.prefill_attention(q, kv, step.slots, *chunks, window=window, k=k, v=v, out=out)
        attention.write_kv(k, v, kv, step.ring_rows)
        if step.saved_rows.shape[0]:
            k, v = (copyable(x).index_select(0, step.saved_tokens).view(x.dtype) for x in (k, v))
            attention.write_kv(k, v, kv, step.saved_rows)
