"""How several processes share the tests, where pytest is told to have them."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


class _ClustersTogether(LoadScopeScheduling):
    """Each test goes to whoever is free, but all those with clusters to one process: a cluster is as much as a small
    machine can take at a time. They come first, as there is the most to wait for in them."""

    def _split_scope(self, nodeid: str) -> str:
        folder = "tests/integration/"
        return folder if nodeid.startswith(folder) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ClustersTogether(config, log)
