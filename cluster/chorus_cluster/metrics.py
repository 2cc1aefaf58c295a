"""Metrics of the whole cluster on one page.

Every gateway and worker replica pushes its own Prometheus page to the hub, one small Ray actor, once a second; any
gateway answers /metrics with all of them merged. Each sample gets the labels `role` and `replica`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

HUB_NAME = "chorus-metrics"
HUB_NAMESPACE = "chorus"
PUSH_INTERVAL_S = 1.0
STALE_AFTER_S = 5.0
_HUB_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Page:
    """One replica's metrics, in Prometheus' text format."""

    role: str
    replica: str
    text: str


class MetricsHub:
    """Holds the last page of every replica; what hasn't been renewed for a while is gone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pages: dict[tuple[str, str], tuple[float, Page]] = {}

    def push(self, role: str, replica: str, text: str) -> None:
        self._pages[role, replica] = (self._clock(), Page(role, replica, text))

    def pages(self) -> list[Page]:
        """The pages that are not stale, ordered by role and replica."""
        oldest = self._clock() - STALE_AFTER_S
        self._pages = {key: entry for key, entry in self._pages.items() if entry[0] >= oldest}
        return [self._pages[key][1] for key in sorted(self._pages)]

    def cluster_page(self, own: Page) -> bytes:
        """All pages merged, with the caller's own as given. Done here, where it holds up nobody's streams."""
        others = [page for page in self.pages() if (page.role, page.replica) != (own.role, own.replica)]
        return merge([own, *others]).encode()


def merge(pages: Iterable[Page]) -> str:
    """One exposition out of many, valid as one: a family's HELP and TYPE once, its samples together.

    A family that a later page declares with another type is left out there, with a log line: two types under one name
    would make the whole page invalid.
    """
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page.text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if merged.type != family.type:
                logger.warning("Metric %s of %s %s has another type there", family.name, page.role, page.replica)
                continue
            for sample in family.samples:
                labels = {**sample.labels, "role": page.role, "replica": page.replica}
                merged.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, families: dict[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()


class HubClient:
    """A replica's connection to the cluster's hub; whoever connects first starts it. Connecting blocks."""

    def __init__(self) -> None:
        # It lives as long as the cluster, and restarts if it dies: the handle stays good.
        self._actor: Any = (
            ray.remote(MetricsHub)
            .options(
                name=HUB_NAME,
                namespace=HUB_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
            )
            .remote()
        )

    async def push_forever(self, render: Callable[[], Page]) -> None:
        """Pushes a replica's page until cancelled. A hub that is away costs this page, nothing else."""
        while True:
            page = render()
            try:
                await self._actor.push.remote(page.role, page.replica, page.text)
            except RayError as error:
                logger.warning("Could not push metrics: %s", type(error).__name__)
            await asyncio.sleep(PUSH_INTERVAL_S)

    async def cluster_page(self, own: Page) -> bytes:
        """The merged page of all replicas, the caller's own as given. Without the hub, that one is all there is."""
        try:
            async with asyncio.timeout(_HUB_TIMEOUT_S):
                page: bytes = await self._actor.cluster_page.remote(own)
        except (RayError, TimeoutError) as error:
            logger.warning("Could not fetch the other replicas' metrics: %s", type(error).__name__)
            return merge([own]).encode()
        return page


def end_hub() -> None:
    """Ends the hub, which would outlive the application, if there is one."""
    try:
        ray.kill(ray.get_actor(HUB_NAME, namespace=HUB_NAMESPACE))
    except ValueError:
        logger.debug("There is no metrics hub")
