import logging

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chorus_cluster.metrics import STALE_AFTER_S, MetricsHub, Page, merge


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def page(role: str, replica: str, *, count: int) -> Page:
    registry = CollectorRegistry()
    Counter("chorus_requests", 'Requests, by "class".', ["kind"], registry=registry).labels(kind='a "b"\\c').inc(count)
    Gauge("chorus_running", "Running now.", registry=registry).set(count)
    Histogram("chorus_step_seconds", "Step time.", buckets=(0.1, 1.0), registry=registry).observe(0.5)
    return Page(role, replica, generate_latest(registry).decode())


def test_the_merged_page_has_each_family_once_and_every_replica_s_samples() -> None:
    text = merge([page("gateway", "g1", count=1), page("worker", "w1", count=2), page("worker", "w2", count=3)])
    lines = text.splitlines()
    for prefix in ("# HELP chorus_requests_total ", "# TYPE chorus_requests_total ", "# TYPE chorus_step_seconds "):
        assert sum(line.startswith(prefix) for line in lines) == 1, prefix
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["chorus_requests"].type == "counter"
    assert families["chorus_step_seconds"].type == "histogram"
    running = {
        (sample.labels["role"], sample.labels["replica"]): sample.value for sample in families["chorus_running"].samples
    }
    assert running == {("gateway", "g1"): 1.0, ("worker", "w1"): 2.0, ("worker", "w2"): 3.0}
    totals = [sample for sample in families["chorus_requests"].samples if sample.name.endswith("_total")]
    assert {sample.labels["kind"] for sample in totals} == {'a "b"\\c'}
    buckets = [s for s in families["chorus_step_seconds"].samples if s.name.endswith("_bucket")]
    assert len(buckets) == 3 * 3


def test_merging_is_stable_under_merging_again() -> None:
    once = merge([page("worker", "w1", count=2)])
    assert merge([Page("worker", "w1", once)]) == once


def test_a_family_with_another_type_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    odd = Page("worker", "w1", "# HELP chorus_running Odd.\n# TYPE chorus_running counter\nchorus_running 1\n")
    with caplog.at_level(logging.WARNING):
        text = merge([page("gateway", "g1", count=1), odd])
    assert "chorus_running" in caplog.text
    assert [f.type for f in text_string_to_metric_families(text) if f.name == "chorus_running"] == ["gauge"]


def test_no_pages_make_an_empty_page() -> None:
    assert merge([]) == ""


def test_the_hub_keeps_the_last_page_of_each_replica_and_drops_the_stale() -> None:
    clock = ManualClock()
    hub = MetricsHub(clock)
    hub.push("worker", "w1", "old")
    clock.now = 3.0
    hub.push("worker", "w1", "new")
    hub.push("gateway", "g1", "g")
    assert hub.pages() == [Page("gateway", "g1", "g"), Page("worker", "w1", "new")]
    clock.now = 3.0 + STALE_AFTER_S
    assert len(hub.pages()) == 2
    hub.push("gateway", "g1", "g")
    clock.now += 0.001
    assert [p.role for p in hub.pages()] == ["gateway"]


def test_the_cluster_s_page_has_the_caller_s_own_as_it_is_now() -> None:
    hub = MetricsHub(ManualClock())
    for stored in (page("gateway", "g1", count=1), page("worker", "w1", count=5)):
        hub.push(stored.role, stored.replica, stored.text)
    text = hub.cluster_page(page("gateway", "g1", count=2)).decode()
    assert 'chorus_running{replica="g1",role="gateway"} 2.0' in text
    assert 'chorus_running{replica="g1",role="gateway"} 1.0' not in text
    assert 'chorus_running{replica="w1",role="worker"} 5.0' in text
