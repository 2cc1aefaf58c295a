"""What the engine counts, as plain numbers. Others read them; nothing in here knows of Prometheus."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

_LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WAIT_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound (inclusive), the last one for everything above all bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, weight: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += weight
        self.sum += value * weight


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is."""

    num_running: int = 0
    num_waiting: int = 0
    # Tokens still to be computed by everything admitted, if each request runs to its limit; not those under way.
    num_outstanding_tokens: int = 0
    # Share of full-attention KV pages in use, 0 to 1.
    kv_usage: float = 0.0


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine started. Times are in seconds."""

    # Tokens whose KV was computed: of prompts, of answers, and of both again after a preemption; not what was cached. A
    # token computed in vain, since its request had just ended, is one too.
    num_computed_tokens: int = 0
    # Tokens of admitted prompts, resumed ones not counted.
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    # Prompt tokens looked up in, and found in, the prefix cache, when a request first ran.
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    # Draws in which a guide forbade what the model would have said, by the constraint; and tokens drawn again.
    guide_interventions: Counter[str] = field(default_factory=Counter)
    # By the lower-case name of the reason.
    finished: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    queue_time: Histogram = field(default_factory=lambda: Histogram(_WAIT_BOUNDS_S))
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(_WAIT_BOUNDS_S))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(_LATENCY_BOUNDS_S))
    # From when the device could begin, as the step was scheduled or the one before was committed, to its commit.
    step_time: Histogram = field(default_factory=lambda: Histogram(_LATENCY_BOUNDS_S))
    # Requests and tokens in a step.
    batch_requests: Histogram = field(default_factory=lambda: Histogram(_SIZE_BOUNDS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(_SIZE_BOUNDS))
