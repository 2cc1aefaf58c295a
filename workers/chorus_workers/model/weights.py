"""A model's weights in memory, in one form whatever the checkpoint's layout; a shard's share of them."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from chorus_kernels.moe import ExpertMatrices
from chorus_kernels.mxfp4 import unpack_mxfp4
from chorus_workers.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shard:
    """Which share of the heads and experts a process holds: the rank-th of `size` equal ones."""

    rank: int = 0
    size: int = 1

    def span(self, count: int) -> slice:
        """This shard's share of `count` things, which must divide evenly."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def check(self, config: ModelConfig) -> None:
        """Errors: ValueError naming what doesn't divide evenly."""
        for name, count in (("KV heads", config.num_kv_heads), ("experts", config.num_experts)):
            if count % self.size:
                raise ValueError(f"{self.size} shards can't share {count} {name} equally")


class PackedMatrices:
    """Experts' matrices kept in MXFP4 and unpacked on use: blocks uint8 [E, N, B, 16], scales uint8 [E, N, B]."""

    def __init__(self, blocks: Tensor, scales: Tensor) -> None:
        self.blocks, self.scales = blocks, scales

    def __getitem__(self, expert: int, /) -> Tensor:
        """The matrix of one expert: float32 [N, B * 32]."""
        return unpack_mxfp4(self.blocks[expert], self.scales[expert])


E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class UnsupportedWeights(Exception):
    """The runner can't run weights of this kind; the message says which it can."""


class WeightForm(Protocol[E_co]):
    """How a runner keeps weights: dtype, device, and the form of its experts' matrices, E."""

    def embedding(self, rows: Tensor) -> Tensor:
        """The embedding matrix, [R, H] as it lies in the mapped file."""
        ...

    def dense(self, tensor: Tensor) -> Tensor:
        """Any other matrix or vector of floating-point numbers."""
        ...

    def packed_experts(self, blocks: Tensor, scales: Tensor) -> E_co:
        """Matrices in MXFP4: blocks uint8 [E, N, B, 16], scales uint8 [E, N, B], as they lie in the mapped file."""
        ...

    def floating_experts(self, matrices: Tensor) -> E_co:
        """Matrices of floating-point numbers, [E, N, K]. Errors: UnsupportedWeights."""
        ...


class ReferenceForm:
    """float32 on a CPU; experts unpacked once (`unpack`) or at each use; the embedding stays in the mapped file."""

    def __init__(self, unpack: bool) -> None:
        self._unpack = unpack

    def embedding(self, rows: Tensor) -> Tensor:
        return rows

    def dense(self, tensor: Tensor) -> Tensor:
        return tensor.float().contiguous()

    def packed_experts(self, blocks: Tensor, scales: Tensor) -> ExpertMatrices:
        return unpack_mxfp4(blocks, scales) if self._unpack else PackedMatrices(blocks, scales)

    def floating_experts(self, matrices: Tensor) -> ExpertMatrices:
        return matrices.float().contiguous()


@dataclass(frozen=True, slots=True)
class LayerWeights(Generic[E]):
    """One layer. H hidden, I intermediate, D head_dim; Hq, Hkv heads and E experts are this shard's."""

    attention_norm: Tensor  # [H]
    qkv: Tensor  # [(Hq + 2 Hkv) * D, H]: queries, keys, values
    qkv_bias: Tensor  # [(Hq + 2 Hkv) * D]
    sinks: Tensor  # [Hq]
    out: Tensor  # [H, Hq * D]
    out_bias: Tensor | None  # [H]; shard 0 adds it
    mlp_norm: Tensor  # [H]
    router: Tensor  # [all experts, H]
    router_bias: Tensor  # [all experts]
    gate_up: E  # E of [2 I, H], gate and up rows interleaved
    gate_up_bias: Tensor  # [E, 2 I]
    down: E  # E of [H, I]
    down_bias: Tensor  # [E, H]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token ids have rows. A plain vocabulary has one for each; a compact one, for those that it lists.

    The output head has no row for tokens that are not listed: their probability is 0.
    """

    # Token id to row of the embedding, int64 [vocab_size]; None: the id is the row.
    embedding_rows: Tensor | None
    # Token id to row of the logits, int64 [vocab_size], -1 for none; None: the id is the row.
    logit_rows: Tensor | None
    # Row of the logits to token id, int64 [N].
    token_ids: Tensor

    @staticmethod
    def plain(size: int) -> "Vocabulary":
        return Vocabulary(None, None, torch.arange(size))


@dataclass(frozen=True, slots=True)
class Model(Generic[E]):
    """A model that is ready to run. Shards other than the first have no head: they never sample."""

    config: ModelConfig
    shard: Shard
    vocabulary: Vocabulary
    embedding: Tensor  # [R, H]
    layers: tuple[LayerWeights[E], ...]
    final_norm: Tensor  # [H]
    head: Tensor | None  # [N, H]


ReferenceModel = Model[ExpertMatrices]
