"""The gpt-oss transformer, over interchangeable operations: read it as the model's specification.

    x = embedding[token]
    per layer:  x += Wo attention(rope(Wqkv norm(x)))          attention over all positions, or a window
                x += sum of 4 experts(norm(x)), weighted by the router
    logits = head norm(x)

With shards, each holds some heads and some experts, and the two sums are taken over all of them.
"""

from typing import Protocol

from torch import Tensor

from chorus_kernels.linear import embedding, linear
from chorus_kernels.moe import ExpertMatrices, experts_forward, route
from chorus_kernels.norm_rope import apply_rope, rms_norm, rope_tables, yarn_concentration, yarn_inverse_frequencies
from chorus_workers.model.config import ModelConfig
from chorus_workers.model.weights import LayerWeights, ReferenceModel


class Attention(Protocol):
    """Attention over the KV memory: it knows where each token's KV goes, and which positions each token sees."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        """Stores k and v, and attends. q: [T, Hq, D]; k, v: [T, Hkv, D]; sinks: [Hq]; returns [T, Hq * D]."""
        ...


class Collective(Protocol):
    """Sums over shards."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every shard's x, in x's memory or anew."""
        ...


class NoCollective:
    """The collective of a model in one piece."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x


class Ops(Protocol):
    """The operations of the model; shapes and formulas are those of `chorus_kernels`' references."""

    def embedding(self, token_ids: Tensor, weight: Tensor) -> Tensor: ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def rope_tables(self, positions: Tensor, frequencies: Tensor, concentration: float) -> tuple[Tensor, Tensor]: ...

    def apply_rope(self, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor: ...

    def route(self, router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]: ...

    def experts(
        self,
        x: Tensor,
        experts: Tensor,
        weights: Tensor,
        gate_up: ExpertMatrices,
        gate_up_bias: Tensor,
        down: ExpertMatrices,
        down_bias: Tensor,
        *,
        alpha: float,
        limit: float,
        first_expert: int,
    ) -> Tensor: ...


class ReferenceOps:
    """The operations in PyTorch, float32."""

    embedding = staticmethod(embedding)
    linear = staticmethod(linear)
    rms_norm = staticmethod(rms_norm)
    rope_tables = staticmethod(rope_tables)
    apply_rope = staticmethod(apply_rope)
    route = staticmethod(route)
    experts = staticmethod(experts_forward)


class Transformer:
    """A model (or one shard of it), its operations, and the sum over shards."""

    def __init__(self, model: ReferenceModel, ops: Ops | None = None, collective: Collective | None = None) -> None:
        self.model = model
        self.ops: Ops = ops or ReferenceOps()
        self.collective: Collective = collective or NoCollective()
        self._frequencies = rope_frequencies(model.config)
        self._concentration = yarn_concentration(model.config.rope.factor)

    def forward(self, token_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """The last layer's output. token_ids, positions: int64 [T]; returns float32 [T, H], before the final norm."""
        model, ops = self.model, self.ops
        rows = model.vocabulary.embedding_rows
        x = ops.embedding(token_ids if rows is None else rows[token_ids], model.embedding)
        rope = ops.rope_tables(positions, self._frequencies, self._concentration)
        for index, layer in enumerate(model.layers):
            x = x + self.collective.all_reduce(self._attention(index, layer, x, rope, attention))
            x = x + self.collective.all_reduce(self._experts(layer, x))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """float32 [S, H] of `forward` to logits [S, N] of the vocabulary's rows. Shard 0 only."""
        model = self.model
        if model.head is None:
            raise ValueError("only shard 0 holds the output head")
        return self.ops.linear(self.ops.rms_norm(x, model.final_norm, model.config.rms_norm_eps), model.head, None)

    def _attention(
        self,
        index: int,
        layer: LayerWeights[ExpertMatrices],
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        attention: Attention,
    ) -> Tensor:
        config, ops = self.model.config, self.ops
        num_heads = layer.sinks.shape[0]
        num_kv_heads = config.num_kv_heads // self.model.shard.size
        normed = ops.rms_norm(x, layer.attention_norm, config.rms_norm_eps)
        qkv = ops.linear(normed, layer.qkv, layer.qkv_bias).unflatten(-1, (-1, config.head_dim))  # [T, heads, D]
        v = qkv[:, num_heads + num_kv_heads :]
        q, k = ops.apply_rope(qkv[:, : num_heads + num_kv_heads], *rope).split((num_heads, num_kv_heads), 1)
        return ops.linear(attention.attend(index, q, k, v, layer.sinks), layer.out, layer.out_bias)

    def _experts(self, layer: LayerWeights[ExpertMatrices], x: Tensor) -> Tensor:
        config, ops = self.model.config, self.ops
        normed = ops.rms_norm(x, layer.mlp_norm, config.rms_norm_eps)
        experts, weights = ops.route(ops.linear(normed, layer.router, layer.router_bias), config.num_experts_per_token)
        return ops.experts(
            normed,
            experts,
            weights,
            layer.gate_up,
            layer.gate_up_bias,
            layer.down,
            layer.down_bias,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            first_expert=self.model.shard.span(config.num_experts).start,
        )


def rope_frequencies(config: ModelConfig) -> Tensor:
    """float32 [D / 2]: angles per position, as the model's configuration scales them."""
    rope = config.rope
    return yarn_inverse_frequencies(
        config.head_dim,
        theta=rope.theta,
        factor=rope.factor,
        original_max_position=rope.original_max_position,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        truncate=rope.truncate,
    )
