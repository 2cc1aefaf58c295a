"""The reference runner: PyTorch on a CPU, float32. It serves the demo model, and is the numerical truth."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chorus_workers.model.transformer import Collective, Transformer
from chorus_workers.model.weights import ReferenceModel
from chorus_workers.runner.base import Batch, Runner, RunnerInfo, SequenceChunk, StepResult
from chorus_workers.runner.hybrid_attention import HybridAttention
from chorus_workers.runner.kv_memory import KVMemory
from chorus_workers.runner.sampler import Sampler
from chorus_workers.runner.step_plan import plan_step, prepare_rings


class ReferenceRunner(Runner):
    """Runs a model, or one shard of it. Linear layers and experts run on all tokens of a batch at once."""

    def __init__(self, model: ReferenceModel, info: RunnerInfo, collective: Collective | None = None) -> None:
        self._info = info
        self._transformer = Transformer(model, collective=collective)
        self._num_heads = model.config.num_heads // model.shard.size
        self._sampler = Sampler(model.vocabulary)
        self.memory = KVMemory(model.config, model.shard, info)

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def token_ids(self) -> Sequence[int] | None:
        vocabulary = self._transformer.model.vocabulary
        return None if vocabulary.logit_rows is None else vocabulary.token_ids.tolist()

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        if not batch.chunks:
            return StepResult.of(batch, ())
        last_hidden, samples = self.forward(batch.chunks), batch.samples
        if not samples:
            return StepResult.of(batch, ())
        asking = [i for i, chunk in enumerate(batch.chunks) if chunk.sample is not None]
        return StepResult.of(batch, self._sampler.draw(self.logits(last_hidden[asking]), samples))

    @torch.inference_mode()
    def forward(self, chunks: Sequence[SequenceChunk]) -> Tensor:
        """Computes the chunks and writes their KV. Returns float32 [chunks, H]: `Transformer.forward` of their ends."""
        prepare_rings(chunks, self.memory)
        plan = plan_step(chunks, self.memory, self._num_heads)
        model = self._transformer.model
        attention = HybridAttention(model.config, self.memory, plan)
        with _subnormals_as_zero():
            hidden = self._transformer.forward(plan.token_ids, plan.positions, attention)
        return hidden[list(plan.last_tokens)]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [S, N] over the vocabulary's rows, of what `forward` returned."""
        return self._transformer.logits(hidden)

    def close(self) -> None:
        """Nothing to do: memory goes with the object."""


@contextlib.contextmanager
def _subnormals_as_zero() -> Iterator[None]:
    """Attention that is sure of itself is full of probabilities below 1e-38, and a CPU is slow with these: prefill of
    the demo model took 1.3 to 1.7 times as long. A setting of this thread."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
