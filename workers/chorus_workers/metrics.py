"""A worker's metrics: what the engine counted, in Prometheus's text format.

The engine keeps plain numbers in a process of its own and reports them; a collector turns the last report into metric
families when it is asked, so that a token costs nothing here. The four `vllm:` gauges are those that llm-d's endpoint
picker reads.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from chorus_workers.engine.stats import EngineLoad, EngineStats, Histogram
from chorus_workers.runner.base import RunnerInfo

logger = logging.getLogger(__name__)

_PUSH_INTERVAL_S = 1.0
# The actor may be started anew under its name.
_PUSHES_PER_LOOKUP = 10


class EngineView(Protocol):
    """What metrics read of an engine."""

    @property
    def info(self) -> RunnerInfo: ...
    @property
    def load(self) -> EngineLoad: ...
    @property
    def stats(self) -> EngineStats: ...


class WorkerCollector(Collector):
    """Renders the engine's last report. `refused_at_edge` counts, by reason, what never reached the engine."""

    def __init__(self, engine: EngineView, refused_at_edge: Counter[str]) -> None:
        self._engine = engine
        self._refused_at_edge = refused_at_edge

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        load, info = self._engine.load, self._engine.info
        running, waiting = "Requests in the running batch.", "Requests waiting to be scheduled."
        usage = "Share of full-attention KV blocks in use, 0 to 1."
        yield GaugeMetricFamily("chorus_requests_running", running, load.num_running)
        yield GaugeMetricFamily("chorus_requests_waiting", waiting, load.num_waiting)
        yield GaugeMetricFamily("chorus_kv_usage_ratio", usage, load.kv_usage)
        yield GaugeMetricFamily(
            "chorus_outstanding_tokens",
            "Tokens still to be computed by admitted requests.",
            load.num_outstanding_tokens,
        )
        yield GaugeMetricFamily("vllm:num_requests_running", running, load.num_running)
        yield GaugeMetricFamily("vllm:num_requests_waiting", waiting, load.num_waiting)
        yield GaugeMetricFamily("vllm:kv_cache_usage_perc", usage, load.kv_usage)
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "How the KV memory is laid out.", labels=["block_size", "num_gpu_blocks"]
        )
        cache.add_metric([str(info.block_size), str(info.num_blocks)], 1)
        yield cache

    def _counters(self) -> Iterator[Metric]:
        stats = self._engine.stats
        for name, text, value in (
            ("chorus_prompt_tokens", "Prompt tokens of admitted requests.", stats.num_prompt_tokens),
            ("chorus_generated_tokens", "Tokens generated.", stats.num_generated_tokens),
            ("chorus_computed_tokens", "Tokens computed, recomputation included.", stats.num_computed_tokens),
            ("chorus_preemptions", "Requests that gave up their KV memory for others.", stats.num_preemptions),
            (
                "chorus_prefix_cache_queries",
                "Prompt tokens of requests when they first ran.",
                stats.num_prefix_queries,
            ),
            (
                "chorus_prefix_cache_hits",
                "Those of them whose KV was found in the prefix cache.",
                stats.num_prefix_hits,
            ),
        ):
            yield CounterMetricFamily(name, text, value)
        finished = CounterMetricFamily("chorus_requests_finished", "Requests ended, by reason.", labels=["reason"])
        for reason, count in sorted(stats.finished.items()):
            finished.add_metric([reason], count)
        yield finished
        interventions = CounterMetricFamily(
            "chorus_guide_interventions",
            "Tokens that a guide kept the model from, by what it is for.",
            labels=["constraint"],
        )
        for constraint, count in sorted(stats.guide_interventions.items()):
            interventions.add_metric([constraint], count)
        yield interventions
        refused = CounterMetricFamily("chorus_requests_refused", "Requests not admitted, by reason.", labels=["reason"])
        for reason, count in sorted((stats.refused + self._refused_at_edge).items()):
            refused.add_metric([reason], count)
        yield refused

    def _histograms(self) -> Iterator[Metric]:
        stats = self._engine.stats
        for name, text, histogram in (
            ("chorus_queue_time_seconds", "From arrival to the first step.", stats.queue_time),
            ("chorus_time_to_first_token_seconds", "From arrival to the first token.", stats.time_to_first_token),
            ("chorus_inter_token_latency_seconds", "Between two tokens of a request.", stats.inter_token_latency),
            ("chorus_step_time_seconds", "Duration of an engine step.", stats.step_time),
            ("chorus_batch_requests", "Requests in a step.", stats.batch_requests),
            ("chorus_batch_tokens", "Tokens computed in a step.", stats.batch_tokens),
        ):
            yield HistogramMetricFamily(name, text, buckets=_cumulative(histogram), sum_value=histogram.sum)


def build_registry(engine: EngineView, refused_at_edge: Counter[str]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(WorkerCollector(engine, refused_at_edge))
    return registry


async def push_forever(actor_name: str, role: str, replica: str, render: Callable[[], str]) -> None:
    """Sends this replica's page to the named Ray actor once a second, until cancelled.

    Nothing waits for the actor: a page that gets lost is followed by the next one, and an actor that isn't there is
    looked up again.
    """
    actor, num_pushes = None, 0
    while True:
        if actor is None or num_pushes % _PUSHES_PER_LOOKUP == 0:
            actor = await asyncio.to_thread(_find_actor, actor_name)
        if actor is not None:
            actor.push.remote(role, replica, render())
            num_pushes += 1
        await asyncio.sleep(_PUSH_INTERVAL_S)


def _find_actor(name: str) -> Any:
    """The actor's handle, or None where it is absent or Ray can't say."""
    import ray

    namespace, _, actor_name = name.rpartition("/")
    try:
        return ray.get_actor(actor_name, namespace=namespace or None)
    except (ValueError, ray.exceptions.RayError) as error:
        logger.debug("metrics actor %s is not reachable: %s", name, type(error).__name__)
        return None


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((_bound_label(bound), total))
    return buckets


def _bound_label(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))
