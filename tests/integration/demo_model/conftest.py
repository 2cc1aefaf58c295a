from collections.abc import Iterator

import pytest
from tests.integration.cluster import Cluster, running


@pytest.fixture(scope="package")
def demo_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """What `chorus serve` starts without a word: one gateway and one worker with the demo model."""
    with running(tmp_path_factory.mktemp("demo"), {}) as cluster:
        yield cluster
