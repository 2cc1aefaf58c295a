from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.cluster import Cluster, running
from tests.support.checkpoints import Shape, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that speaks 400 plain tokens and never stops. It knows no harmony: nothing can hold it to
    that."""
    shape = Shape(vocab_size=201088, vocabulary_rows=(-1, *range(1000, 1400)))
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), shape)


@pytest.fixture(scope="module")
def model_cluster(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Cluster]:
    """One gateway and two workers with a real runner."""
    settings = {
        "model": {"path": str(checkpoint), "name": "test"},
        "gateway": {"header_guard": False},
        "workers": {"replicas": 2, "num_cpus": 0.5, "num_threads": 1, "max_model_len": 4096},
    }
    with running(tmp_path_factory.mktemp("model"), settings) as cluster:
        yield cluster
