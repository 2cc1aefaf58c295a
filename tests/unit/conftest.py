"""Databases for whoever tests with a store: SQLite, and PostgreSQL on a server of the tests' own."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import postgresql

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    with postgresql.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.sqlite3"
    server = request.getfixturevalue("postgresql_server")
    assert isinstance(server, postgresql.Server)
    return server.new_database(f"test{next(_numbers)}")
