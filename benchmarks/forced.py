"""Runs the Triton runner's transformer over given tokens, whatever the model would say (teacher-forced)."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.support.checkpoints import TINY, write_checkpoint
from torch import Tensor

from chorus_workers.config import KvCacheDtype
from chorus_workers.sampling_params import SamplingParams

BLOCK_SIZE = 16


class ForcedSequences:
    """Sequences of one model, over KV memory of their own."""

    def __init__(
        self,
        model: Any,
        num_sequences: int,
        length: int,
        kv_dtype: torch.dtype | None = None,
        batch_invariant: bool = False,
    ) -> None:
        """length: tokens that a sequence may have."""
        from chorus_workers.runner.base import RunnerInfo
        from chorus_workers.runner.triton.kv_memory import DeviceKVMemory
        from chorus_workers.runner.triton.transformer import DeviceTransformer

        config, self._device = model.config, model.embedding.device
        self._per_sequence = -(-length // BLOCK_SIZE)
        num_blocks = num_sequences * self._per_sequence
        tiles = None if batch_invariant else tiles_beside(model)
        info = RunnerInfo(config.vocab_size, length, BLOCK_SIZE, num_blocks, num_sequences, length, num_shards=1)
        self._memory = DeviceKVMemory(config, model.shard, info, kv_dtype or model.embedding.dtype, self._device)
        self._invariant = batch_invariant
        self._transformer = DeviceTransformer(model, self._memory, length, tiles, batch_invariant=batch_invariant)
        self._group = config.num_heads // config.num_kv_heads

    def normed(self, start: int, token_ids: Sequence[Sequence[int]], first: int = 0) -> Tensor:
        """A step with a chunk from position `start` of each sequence from `first`; one token is decoding. Returns every
        token's hidden state, normed for the output head: [T, H]."""
        from chorus_workers.runner.base import SampleRequest, SequenceChunk
        from chorus_workers.runner.triton.step import prepare_step

        chunks = []
        for slot, ids in enumerate(token_ids, first):
            pages = range(slot * self._per_sequence, (slot + 1) * self._per_sequence)
            # Tells that one token is no prompt's.
            sample = SampleRequest(SamplingParams(), ids, start, start + 1) if len(ids) == 1 else None
            chunks.append(SequenceChunk(str(slot), slot, start, ids, pages, sample))
        step = prepare_step(chunks, self._memory, self._group, self._device, batch_invariant=self._invariant)
        inputs = step.inputs
        return self._transformer.forward(replace(inputs, sampled_tokens=None))

    def logits(self, start: int, token_ids: Sequence[Sequence[int]], first: int = 0) -> Tensor:
        """The same for logits: float32 [T, N]."""
        return self._transformer.logits(self.normed(start, token_ids, first))


def tiles_beside(model: Any) -> Any:
    """The `ProductTiles` that the Triton runner would keep of a model, before there is KV memory."""
    from chorus_workers.runner.triton.form import product_tiles, product_tiles_within

    device = model.embedding.device
    if device.type == "cpu":
        return product_tiles(model)
    torch.cuda.empty_cache()
    return product_tiles_within(torch.cuda.mem_get_info(device)[0], model)


def load(folder: Path, kv_cache_dtype: KvCacheDtype = "auto") -> Any:
    """A model in the Triton runner's form, on the GPU if there is one. Errors: ValueError, if that has no such KV."""
    from chorus_workers.model.checkpoint import load_model_as
    from chorus_workers.runner.triton.device import choose_device
    from chorus_workers.runner.triton.form import DeviceForm

    device = choose_device(kv_cache_dtype) if torch.cuda.is_available() else torch.device("cpu")
    return load_model_as(DeviceForm(device), folder)


def checkpoint(name: str, stack: ExitStack) -> Path:
    """The checkpoint's folder; of `random`, that of a tiny random one, which goes with the stack."""
    if name != "random":
        return Path(name)
    return write_checkpoint(Path(stack.enter_context(tempfile.TemporaryDirectory())), TINY)
