"""Loads a checkpoint, in the Hugging Face layout or OpenAI's `original/` layout, with MXFP4 or floating-point experts.

    what                 Hugging Face (model.layers.N. …)          OpenAI (block.N. …)
    query, key, value    self_attn.{q,k,v}_proj.{weight,bias}      attn.qkv.{weight,bias}, fused in this order
    experts, MXFP4       mlp.experts.*_proj_{blocks,scales}        mlp.mlp{1,2}_weight.{blocks,scales}
    experts, floating    mlp.experts.*_proj [E, in, out]           mlp.mlp{1,2}_weight [E, out, in]

Both interleave gate and up in the rows of the first expert matrix. Files are memory-mapped, and a shard reads its
share only. Every tensor's shape and dtype is checked before use.
"""

from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from chorus_kernels.mxfp4 import BLOCK_SIZE, SCALE_NAN
from chorus_workers.model.config import ModelConfig, read_config
from chorus_workers.model.errors import CheckpointError
from chorus_workers.model.layouts import HUGGING_FACE, ORIGINAL, MatrixNames
from chorus_workers.model.tensor_files import BYTES, TensorFiles
from chorus_workers.model.weights import (
    E,
    LayerWeights,
    Model,
    ReferenceForm,
    ReferenceModel,
    Shard,
    UnsupportedWeights,
    Vocabulary,
    WeightForm,
)

__all__ = ["CheckpointError", "load_model"]

# The reference form unpacks experts to float32 while loading if all of a shard's take no more than this.
UNPACKED_EXPERTS_LIMIT = 2 << 30


def load_model(
    folder: Path, shard: Shard | None = None, unpacked_experts_limit: int = UNPACKED_EXPERTS_LIMIT
) -> ReferenceModel:
    """Reads a shard's share of a checkpoint in the reference runner's form.

    Errors: CheckpointError naming file and tensor; ValueError when the shards can't share the model equally.
    """
    config, shard = read_config(folder), shard or Shard()
    num_experts = config.num_layers * config.num_experts // shard.size
    expert_bytes = 3 * config.intermediate_size * config.hidden_size * 4
    form = ReferenceForm(unpack=num_experts * expert_bytes <= unpacked_experts_limit)
    return _Loader(folder, config, shard, form).model()


def load_model_as(form: WeightForm[E], folder: Path, shard: Shard | None = None) -> Model[E]:
    """Reads a shard's share of a checkpoint in a runner's form. Errors: as `load_model`'s, and the form's."""
    return _Loader(folder, read_config(folder), shard or Shard(), form).model()


class _Loader(Generic[E]):
    """Reads named tensors into a form that a runner runs on."""

    def __init__(self, folder: Path, config: ModelConfig, shard: Shard, form: WeightForm[E]) -> None:
        shard.check(config)
        self.config, self.shard, self.form = config, shard, form
        self.files = TensorFiles(folder)
        self.layout = layout = ORIGINAL if ORIGINAL.embedding in self.files else HUGGING_FACE
        # Which tensors are missed where a layer has no expert matrices at all.
        self.has_packed = any(
            layout.layer.format(index) + names.blocks in self.files
            for index in range(config.num_layers)
            for names in (layout.gate_up, layout.down)
        )

    def model(self) -> Model[E]:
        config = self.config
        vocabulary, num_rows, head_rows = self._vocabulary()
        embedding = self.files.read(self.layout.embedding, (num_rows, config.hidden_size))
        head = None
        if self.shard.rank == 0:
            name = self.layout.embedding if config.tied_embeddings else self.layout.head
            head = self.files.read(name, (num_rows, config.hidden_size))
            head = self.form.dense(head if head_rows is None else head[head_rows])
        return Model(
            config=config,
            shard=self.shard,
            vocabulary=vocabulary,
            embedding=self.form.embedding(embedding),
            layers=tuple(self._layer(self.layout.layer.format(index)) for index in range(config.num_layers)),
            final_norm=self._dense(self.layout.final_norm, config.hidden_size),
            head=head,
        )

    def _vocabulary(self) -> tuple[Vocabulary, int, Tensor | None]:
        """The vocabulary, the number of embedding rows, and those of them that the head has too (None: all)."""
        size = self.config.vocab_size
        if not self.config.compact_vocabulary:
            return Vocabulary.plain(size), size, None
        name = "vocabulary_rows"
        num_rows = self.files.num_rows(name)
        token_ids = self.files.read(name, (num_rows,), (torch.int32,)).long()
        listed = (token_ids != -1).nonzero().squeeze(-1)
        known = token_ids[listed]
        if len(known) != num_rows - 1 or len(known.unique()) != len(known):
            raise self._error(name, "must hold -1 once, and each token id at most once")
        if not len(known) or int(known.min()) < 0 or int(known.max()) >= size:
            raise self._error(name, f"must hold token ids from 0 to {size - 1}, and -1 once")
        unknown = int((token_ids == -1).nonzero())
        embedding_rows = torch.full((size,), unknown).index_copy_(0, known, listed)
        logit_rows = torch.full((size,), -1).index_copy_(0, known, torch.arange(len(known)))
        return Vocabulary(embedding_rows, logit_rows, known), num_rows, listed

    def _layer(self, prefix: str) -> LayerWeights[E]:
        config, layout, size = self.config, self.layout, self.config.hidden_size
        qkv, qkv_bias = self._qkv(prefix)
        heads = self.shard.span(config.num_heads)
        columns = slice(heads.start * config.head_dim, heads.stop * config.head_dim)
        gate_up, gate_up_bias = self._experts(prefix, layout.gate_up, 2 * config.intermediate_size, size)
        down, down_bias = self._experts(prefix, layout.down, size, config.intermediate_size)
        out = self.files.read(f"{prefix}{layout.out}.weight", (size, config.num_heads * config.head_dim))
        return LayerWeights(
            attention_norm=self._dense(prefix + layout.attention_norm, size),
            qkv=qkv,
            qkv_bias=qkv_bias,
            sinks=self._dense(prefix + layout.sinks, config.num_heads)[heads],
            out=self.form.dense(out[:, columns]),
            out_bias=self._dense(f"{prefix}{layout.out}.bias", size) if self.shard.rank == 0 else None,
            mlp_norm=self._dense(prefix + layout.mlp_norm, size),
            router=self._dense(f"{prefix}{layout.router}.weight", config.num_experts, size),
            router_bias=self._dense(f"{prefix}{layout.router}.bias", config.num_experts),
            gate_up=gate_up,
            gate_up_bias=gate_up_bias,
            down=down,
            down_bias=down_bias,
        )

    def _qkv(self, prefix: str) -> tuple[Tensor, Tensor]:
        """This shard's rows of the fused projection: its queries, its keys, its values."""
        config, names = self.config, self.layout.qkv
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        stored = (sum(heads),) if len(names) == 1 else heads
        parts: list[Tensor] = []
        for kind, rest in (("weight", (config.hidden_size,)), ("bias", ())):
            whole = [
                self.files.read(f"{prefix}{name}.{kind}", (count * config.head_dim, *rest))
                for name, count in zip(names, stored, strict=True)
            ]
            by_head = torch.cat(whole).unflatten(0, (-1, config.head_dim)).split(heads)
            mine = [part[self.shard.span(count)] for part, count in zip(by_head, heads, strict=True)]
            parts.append(self.form.dense(torch.cat(mine).flatten(0, 1)))
        return parts[0], parts[1]

    def _experts(self, prefix: str, names: MatrixNames, rows: int, columns: int) -> tuple[E, Tensor]:
        """This shard's matrices, [rows, columns] each, and their biases."""
        count, mine = self.config.num_experts, self.shard.span(self.config.num_experts)
        bias = self._dense(prefix + names.bias, count, rows)[mine]
        is_floating = prefix + names.floating in self.files or not self.has_packed
        if is_floating and prefix + names.blocks not in self.files:
            shape = (count, columns, rows) if self.layout.experts_transposed else (count, rows, columns)
            matrices = self.files.read(prefix + names.floating, shape)[mine]
            if self.layout.experts_transposed:
                matrices = matrices.transpose(1, 2)
            try:
                return self.form.floating_experts(matrices), bias
            except UnsupportedWeights as error:
                raise self._error(prefix + names.floating, str(error)) from None
        if columns % BLOCK_SIZE:
            raise self._error(prefix + names.blocks, f"MXFP4 needs rows of a multiple of 32 elements, not {columns}")
        num_blocks = columns // BLOCK_SIZE
        blocks = self.files.read(prefix + names.blocks, (count, rows, num_blocks, BLOCK_SIZE // 2), BYTES)[mine]
        scales = self.files.read(prefix + names.scales, (count, rows, num_blocks), BYTES)[mine]
        if bool((scales == SCALE_NAN).any()):
            raise self._error(prefix + names.scales, "a scale is 255, which is not a number")
        return self.form.packed_experts(blocks, scales), bias

    def _dense(self, name: str, *shape: int) -> Tensor:
        return self.form.dense(self.files.read(name, shape))

    def _error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(self.files.path(name), problem, name)
