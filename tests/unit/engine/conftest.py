from functools import partial

import pytest
from tests.unit.engine.support import Build, build_engine


@pytest.fixture(params=[False, True], ids=["in-turn", "overlapped"])
def build(request: pytest.FixtureRequest) -> Build:
    """Builds engines that step one after the other, or that launch the next step before they commit one."""
    return partial(build_engine, overlaps=request.param)
