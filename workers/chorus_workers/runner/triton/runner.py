"""The Triton runner: one GPU, weights in MXFP4 and bfloat16, our own kernels."""

import torch
from torch import Tensor

from chorus_kernels.moe.layout import PackedExperts
from chorus_workers.model.weights import Model
from chorus_workers.runner.base import Batch, Runner, RunnerInfo, StepResult
from chorus_workers.runner.triton.kv_memory import DeviceKVMemory
from chorus_workers.runner.triton.sampler import DeviceSampler
from chorus_workers.runner.triton.step import prepare_step
from chorus_workers.runner.triton.transformer import DeviceTransformer


class TritonRunner(Runner):
    """Runs a model on the device that holds its weights. KV memory has the weights' dtype."""

    def __init__(self, model: Model[PackedExperts], info: RunnerInfo) -> None:
        self._info, self._device = info, model.embedding.device
        self.memory = DeviceKVMemory(model.config, model.shard, info, model.embedding.dtype, self._device)
        self._transformer = DeviceTransformer(model, self.memory, info.max_model_len)
        self._sampler = DeviceSampler(model.vocabulary, self._device)
        self._group = model.config.num_heads // model.config.num_kv_heads

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        if not batch.chunks:
            return StepResult.of(batch, ())
        hidden, samples = self._forward(batch), batch.samples
        if not samples:
            return StepResult.of(batch, ())
        return StepResult.of(batch, self._sampler.draw(self._transformer.logits(hidden), samples))

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Computes the chunks and writes their KV. Returns float32 [S, N] of those that ask for a sample."""
        return self._transformer.logits(self._forward(batch))

    def close(self) -> None:
        """Nothing to do: memory goes with the object."""

    def _forward(self, batch: Batch) -> Tensor:
        step = prepare_step(batch.chunks, self.memory, self._group, self._device)
        for copies in (step.restores, step.saves):
            if copies.shape[1]:
                self.memory.copy_rings(*copies)
        return self._transformer.forward(step)
