"""Steps as the scheduler makes them, and what it learns from how long they took."""

import math
from dataclasses import dataclass, field

from chorus_workers.engine.prefill_budget import PrefillBudget
from chorus_workers.engine.request import Request
from chorus_workers.engine.stats import EngineStats
from chorus_workers.engine.throughput import Throughput
from chorus_workers.runner.base import Batch, SequenceChunk


@dataclass(slots=True)
class ScheduledStep:
    """A step's work, and whose it is. Filled by the scheduler, and given back to it with the result."""

    # On the scheduler's clock.
    scheduled_at: float
    max_tokens: int
    chunks: list[SequenceChunk] = field(default_factory=list)
    # One for each chunk.
    requests: list[Request] = field(default_factory=list)
    num_tokens: int = 0
    num_decode_tokens: int = 0

    @property
    def batch(self) -> Batch:
        return Batch(self.chunks)


class StepAccounts:
    """Counts steps, and times them."""

    def __init__(self, stats: EngineStats, step_budget_s: float | None) -> None:
        """step_budget_s: see WorkerConfig."""
        self.throughput = Throughput()
        self.prefill_budget = PrefillBudget(step_budget_s)
        self._stats = stats
        self._last_commit = -math.inf

    def observe(self, step: ScheduledStep, now: float) -> None:
        """A step's time counts from when the device could begin: as it was scheduled, or the one before was done."""
        step_time = now - max(step.scheduled_at, self._last_commit)
        self._last_commit = now
        self._stats.step_time.observe(step_time)
        self._stats.batch_requests.observe(len(step.chunks))
        self._stats.batch_tokens.observe(step.num_tokens)
        self._stats.num_computed_tokens += step.num_tokens
        self.throughput.observe(step.num_tokens, step_time)
        num_prefill_tokens = step.num_tokens - step.num_decode_tokens
        self.prefill_budget.observe(step.num_decode_tokens, num_prefill_tokens, step_time)
