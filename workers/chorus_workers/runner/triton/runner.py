"""The Triton runner: one GPU, weights in MXFP4 and bfloat16, our own kernels."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chorus_kernels.moe.layout import PackedExperts
from chorus_kernels.sampling.op import LatestTokens
from chorus_workers.model.weights import Model
from chorus_workers.runner.base import Batch, PendingStep, Runner, RunnerInfo, StepResult
from chorus_workers.runner.triton.decode_graphs import DecodeGraphs
from chorus_workers.runner.triton.form import ProductTiles
from chorus_workers.runner.triton.kv_memory import DeviceKVMemory
from chorus_workers.runner.triton.sampler import DeviceSampler, PendingDraw, PreparedDraw
from chorus_workers.runner.triton.step import PreparedStep, prepare_step
from chorus_workers.runner.triton.transfer import Upload
from chorus_workers.runner.triton.transformer import DeviceTransformer
from chorus_workers.runner.triton.warm_up import warm_up


class _LaunchedStep:
    def __init__(self, batch: Batch, draw: PreparedDraw | None) -> None:
        """draw: None where the step draws nothing."""
        self._batch, self._prepared = batch, draw
        self._drawn: PendingDraw | None = None

    @torch.inference_mode()
    def draw(self) -> None:
        if self._prepared is not None:
            self._drawn = self._prepared.launch()

    def result(self) -> StepResult:
        return StepResult.of(self._batch, () if self._drawn is None else self._drawn.result())


class TritonRunner(Runner):
    """Runs a model on the device that holds its weights.

    What a step draws stays on the device too, where the next one finds it: `launch` and `draw` wait for nothing.
    """

    def __init__(
        self,
        model: Model[PackedExperts],
        info: RunnerInfo,
        kv_dtype: torch.dtype | None = None,
        tiles: ProductTiles | None = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        """kv_dtype: of the KV memory; by default the weights'. tiles: of the model, where there is room for them.
        batch_invariant: whether a request's logits must be the same bits alone and among others."""
        self._info, self._device = replace(info, batch_invariant=batch_invariant), model.embedding.device
        self.memory = DeviceKVMemory(model.config, model.shard, info, kv_dtype or model.embedding.dtype, self._device)
        self._transformer = DeviceTransformer(
            model, self.memory, info.max_model_len, tiles, batch_invariant=batch_invariant
        )
        self._sampler = DeviceSampler(model.vocabulary, self._device)
        self._group = model.config.num_heads // model.config.num_kv_heads
        self._last_tokens = torch.zeros(info.num_slots + 1, dtype=torch.int32, device=self._device)
        self._graphs = DecodeGraphs(self._transformer, info, self._last_tokens)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Captures the graphs of decode steps and compiles what other steps launch, on a GPU. The KV memory must not be
        in use yet."""
        if self._device.type == "cuda":
            self._graphs.capture()
            warm_up(self, self._transformer.model.config)

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def overlaps(self) -> bool:
        return True

    @property
    def token_ids(self) -> Sequence[int] | None:
        vocabulary = self._transformer.model.vocabulary
        return None if vocabulary.logit_rows is None else vocabulary.token_ids.tolist()

    def run(self, batch: Batch) -> StepResult:
        step = self.launch(batch)
        step.draw()
        return step.result()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> PendingStep:
        chunks, samples, upload = batch.chunks, batch.samples, Upload()
        numbers = self._sampler.prepare(upload, samples)
        if chunks and self._graphs.takes(chunks):
            logits, slots, sent = self._graphs.run(chunks, upload)
        else:
            step = self._prepare(batch)
            hidden, slots = self._transformer.forward(step.inputs), step.sampled_slots
            if not samples:
                return _LaunchedStep(batch, None)
            logits, sent = self._transformer.logits(hidden), upload.to(self._device)
        latest = LatestTokens(self._last_tokens, slots)
        return _LaunchedStep(batch, PreparedDraw(self._sampler, samples, logits, numbers, sent, latest))

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Computes the chunks and writes their KV. Returns float32 [S, N] of those that ask for a sample."""
        return self._transformer.logits(self._transformer.forward(self._prepare(batch).inputs))

    def close(self) -> None:
        """Nothing to do: memory goes with the object."""

    def _prepare(self, batch: Batch) -> PreparedStep:
        batch_invariant = self._transformer.batch_invariant
        step = prepare_step(batch.chunks, self.memory, self._group, self._device, batch_invariant=batch_invariant)
        if step.pending.shape[1]:
            tokens, slots = step.pending
            step.inputs.token_ids.index_copy_(0, tokens.long(), self._last_tokens.index_select(0, slots))
        for copies in (step.restores, step.saves):
            if copies.shape[1]:
                self.memory.copy_rings(*copies)
        return step
