from collections.abc import Iterator

import pytest
from tests.integration.cluster import Cluster, echo_model, running


@pytest.fixture(scope="package")
def fake_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two gateways and two workers whose engines step every 10 ms; each runs 8 requests and queues 4."""
    settings = {
        "model": {"path": echo_model(), "name": "test"},
        "gateway": {"replicas": 2},
        "workers": {"replicas": 2, "max_num_seqs": 8, "max_queued_requests": 4, "num_cpus": 0.5},
    }
    environment = {"RAY_metrics_report_interval_ms": "1000", "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "200"}
    with running(tmp_path_factory.mktemp("fake"), settings, **environment) as cluster:
        yield cluster
