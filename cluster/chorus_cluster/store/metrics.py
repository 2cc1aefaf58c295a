"""What is counted of a store's operations."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from chorus_cluster.errors import Unavailable

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class StoreMetrics:
    """All times are in seconds."""

    def __init__(
        self, registry: CollectorRegistry | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """registry: the gateway's; by default one that nobody reads."""
        registry = CollectorRegistry() if registry is None else registry
        self._clock = clock
        self._operations = Counter(
            "chorus_gateway_store_operations",
            "Operations on stored responses ended, by kind and outcome: ok, unavailable, cancelled, error.",
            ["operation", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "chorus_gateway_store_operation_seconds",
            "From the beginning of an operation on stored responses to its end. A write waits for those before it.",
            ["operation"],
            buckets=_BUCKETS,
            registry=registry,
        )

    @contextlib.contextmanager
    def measuring(self, operation: str) -> Iterator[None]:
        """Counts what is done within."""
        start, outcome = self._clock(), "error"
        try:
            yield
            outcome = "ok"
        except Unavailable:
            outcome = "unavailable"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._operations.labels(operation, outcome).inc()
            self._seconds.labels(operation).observe(self._clock() - start)


class _Measured(Protocol):
    @property
    def metrics(self) -> StoreMetrics: ...


_Owner = TypeVar("_Owner", bound=_Measured)


def measured(
    method: Callable[Concatenate[_Owner, _Parameters], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Owner, _Parameters], Coroutine[Any, Any, _Result]]:
    """An operation of a store, counted by its name."""

    @functools.wraps(method)
    async def run(self: _Owner, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with self.metrics.measuring(method.__name__):
            return await method(self, *args, **kwargs)

    return run
