"""How several processes share the tests, where pytest is told to have them."""

from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController


class _ClustersTogether(LoadScopeScheduling):
    """Each test goes to whoever is free, but all those with clusters to one process: a cluster is as much as a small
    machine can take at a time. They come first, as there is the most to wait for in them."""

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        # By number too: tests of one name, as schemathesis makes them, would be taken for one test.
        super().add_node_collection(node, [f"{name} ({number})" for number, name in enumerate(collection)])

    def _split_scope(self, nodeid: str) -> str:
        folder = "tests/integration/"
        return folder if nodeid.startswith(folder) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ClustersTogether(config, log)
