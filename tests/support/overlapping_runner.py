"""Makes any runner one that overlaps, as late as a device may be: a step is computed when its result is asked for, from
what its batch said at launch, and the tokens drawn stay in the slots of a "device" of its own."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from chorus_workers.runner.base import (
    PENDING_TOKEN,
    Batch,
    PendingStep,
    Runner,
    RunnerInfo,
    SampleRequest,
    SequenceChunk,
    StepResult,
)

# One that is computed, and the next.
_MAX_UNDER_WAY = 2


class OverlappingRunner(Runner):
    """Refuses, with AssertionError, launches that no device could run, and results out of order."""

    def __init__(self, inner: Runner) -> None:
        self._inner = inner
        # Slots that the last launch draws for, each with the request that has it.
        self._drawing: dict[int, str] = {}
        # The device's: what the last step that was computed has drawn, by slot.
        self._drawn: dict[int, int] = {}
        self._under_way: deque[_Step] = deque()
        # How many chunks began with a token that was not known, and how many launches found a step under way.
        self.num_pending_tokens = 0
        self.num_overlapped = 0

    @property
    def info(self) -> RunnerInfo:
        return self._inner.info

    @property
    def token_ids(self) -> Sequence[int] | None:
        return self._inner.token_ids

    @property
    def overlaps(self) -> bool:
        return True

    def run(self, batch: Batch) -> StepResult:
        step = self.launch(batch)
        step.draw()
        return step.result()

    def launch(self, batch: Batch) -> PendingStep:
        assert len(self._under_way) < _MAX_UNDER_WAY, "a third step is launched"
        assert all(step.was_drawn for step in list(self._under_way)[:1]), "the step before has not been drawn"
        self.num_overlapped += bool(self._under_way)
        step = _Step(self, Batch([self._read(chunk) for chunk in batch.chunks]), batch)
        self._drawing = {chunk.slot: chunk.request_id for chunk in batch.chunks if chunk.sample is not None}
        self._under_way.append(step)
        return step

    def close(self) -> None:
        self._inner.close()

    def compute(self, step: "_Step") -> StepResult:
        """For steps: the result."""
        assert self._under_way and self._under_way.popleft() is step, "results are asked for out of order, or twice"
        batch = Batch([replace(chunk, token_ids=self._resolve(chunk)) for chunk in step.batch.chunks])
        result = self._inner.run(batch)
        pairs = zip(batch.chunks, result.sampled, strict=True)
        self._drawn = {chunk.slot: sampled.token_id for chunk, sampled in pairs if sampled is not None}
        return result

    def _read(self, chunk: SequenceChunk) -> SequenceChunk:
        """A chunk as it is now, whatever becomes of the lists that it refers to."""
        if PENDING_TOKEN in chunk.token_ids:
            assert len(chunk.token_ids) == 1, "a pending token is not alone"
            assert self._drawing.get(chunk.slot) == chunk.request_id, "the step before draws nothing for this request"
            self.num_pending_tokens += 1
        sample = chunk.sample
        if sample is not None:
            assert sample.position == chunk.start + len(chunk.token_ids)
            missing = sample.position - len(sample.all_token_ids)
            assert missing in (0, 1) and (missing == 0 or PENDING_TOKEN in chunk.token_ids)
        return replace(chunk, token_ids=tuple(chunk.token_ids), block_table=tuple(chunk.block_table), sample=sample)

    def _resolve(self, chunk: SequenceChunk) -> Sequence[int]:
        return (self._drawn[chunk.slot],) if PENDING_TOKEN in chunk.token_ids else chunk.token_ids


class _Step:
    def __init__(self, runner: OverlappingRunner, batch: Batch, asked: Batch) -> None:
        """batch: as it was at launch; asked: as the engine goes on changing it."""
        self._runner = runner
        self.batch = batch
        self._asked = asked
        self.was_drawn = False

    def draw(self) -> None:
        """Reads what is to be drawn, as it is now."""
        assert not self.was_drawn, "drawn twice"
        self.was_drawn = True
        chunks = [
            replace(chunk, sample=self._read(asked.sample))
            for chunk, asked in zip(self.batch.chunks, self._asked.chunks, strict=True)
        ]
        self.batch = Batch(chunks)

    def result(self) -> StepResult:
        assert self.was_drawn, "nothing was drawn"
        return self._runner.compute(self)

    @staticmethod
    def _read(sample: SampleRequest | None) -> SampleRequest | None:
        return None if sample is None else replace(sample, all_token_ids=tuple(sample.all_token_ids))
