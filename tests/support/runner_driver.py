"""Drives a runner over whole sequences, as the engine would, but with chunk sizes of the test's choice."""

from collections.abc import Sequence

import torch

from chorus_workers.model.weights import ReferenceModel
from chorus_workers.runner.base import Runner, RunnerInfo, SequenceChunk
from chorus_workers.runner.reference import ReferenceRunner


def make_runner(
    model: ReferenceModel, *, block_size: int = 7, num_blocks: int = 200, num_slots: int = 5, num_snapshots: int = 0
) -> ReferenceRunner:
    """A runner whose KV memory is full of NaN but for the row that stands for the sink."""
    info = RunnerInfo(
        vocab_size=model.config.vocab_size,
        max_model_len=block_size * num_blocks,
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=num_slots,
        max_batched_tokens=512,
        num_shards=1,
        num_snapshots=num_snapshots,
    )
    runner = ReferenceRunner(model, info)
    poison(runner)
    return runner


def poison(runner: ReferenceRunner) -> None:
    for memory in runner.memory.layers:
        memory[:, 1:] = torch.nan


class ScatteredSequence:
    """One request: a slot, and pages in a scattered order."""

    def __init__(self, slot: int, runner: Runner) -> None:
        self.slot = slot
        self.num_computed = 0
        count = runner.info.num_blocks // runner.info.num_slots
        generator = torch.Generator().manual_seed(slot)
        own = torch.arange(runner.info.num_blocks)[slot :: runner.info.num_slots][:count]
        self.block_table = own[torch.randperm(count, generator=generator)].tolist()

    def chunk(self, token_ids: Sequence[int]) -> SequenceChunk:
        chunk = SequenceChunk(str(self.slot), self.slot, self.num_computed, token_ids, self.block_table, None)
        self.num_computed += len(token_ids)
        return chunk
