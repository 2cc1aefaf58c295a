"""What a gateway replica counts."""

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chorus_cluster.gateway.events import Usage

_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96)
_BETWEEN_BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class GatewayMetrics:
    """The metrics of one gateway, in a registry of their own. All times are in seconds."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.requests = Counter(
            "chorus_gateway_requests",
            "Requests answered, by route (HTTP path or gRPC method) and status (HTTP code or gRPC status name).",
            ["route", "status"],
            registry=self.registry,
        )
        self.outcomes = Counter(
            "chorus_gateway_chats",
            "Chat requests ended, by outcome: stop, length, tool_calls, client_left, or an error's code.",
            ["outcome"],
            registry=self.registry,
        )
        self.running = Gauge(
            "chorus_gateway_chats_running", "Chat requests accepted and not yet ended.", registry=self.registry
        )
        self.first_token = Histogram(
            "chorus_gateway_time_to_first_token_seconds",
            "From a chat request's arrival to its first token.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.between_messages = Histogram(
            "chorus_gateway_inter_message_seconds",
            "Between two messages of an engine for one request; a message holds one or several tokens.",
            buckets=_BETWEEN_BUCKETS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "chorus_gateway_chat_duration_seconds",
            "From a chat request's arrival to its end.",
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("chorus_gateway_prompt_tokens", "Prompt tokens sent.", registry=self.registry)
        self.cached_tokens = Counter(
            "chorus_gateway_cached_prompt_tokens", "Prompt tokens found in a prefix cache.", registry=self.registry
        )
        self.completion_tokens = Counter(
            "chorus_gateway_completion_tokens", "Tokens received from engines.", registry=self.registry
        )
        self.repairs = Counter(
            "chorus_gateway_harmony_repairs",
            "Malformed harmony repaired, by class.",
            ["repair"],
            registry=self.registry,
        )
        self.engine_retries = Counter(
            "chorus_gateway_engine_retries",
            "Attempts that were followed by another one, by reason; worker_lost may be a resumed stream.",
            ["reason"],
            registry=self.registry,
        )

    def on_engine_retry(self, reason: str) -> None:
        """For the engine client: a request goes to another worker."""
        self.engine_retries.labels(reason).inc()

    def exposition(self) -> bytes:
        """This gateway's own page in Prometheus' text format."""
        return generate_latest(self.registry)


class ChatTimer:
    """Counts one chat request, from its arrival (construction) to its end (`finish`, once)."""

    def __init__(self, metrics: GatewayMetrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._clock = clock
        self._start = clock()
        self._last_message: float | None = None
        self._is_finished = False
        metrics.running.inc()

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    def on_message(self) -> None:
        """A message with tokens came from the engine."""
        now = self._clock()
        if self._last_message is None:
            self._metrics.first_token.observe(now - self._start)
        else:
            self._metrics.between_messages.observe(now - self._last_message)
        self._last_message = now

    def finish(self, outcome: str, usage: Usage | None = None, repairs: Mapping[str, int] | None = None) -> None:
        """The request has ended; further calls do nothing."""
        if self._is_finished:
            return
        self._is_finished = True
        metrics = self._metrics
        metrics.running.dec()
        metrics.outcomes.labels(outcome).inc()
        metrics.duration.observe(self.seconds)
        if usage is not None:
            metrics.prompt_tokens.inc(usage.prompt_tokens)
            metrics.cached_tokens.inc(usage.cached_tokens)
            metrics.completion_tokens.inc(usage.completion_tokens)
        for repair, count in (repairs or {}).items():
            metrics.repairs.labels(repair).inc(count)
