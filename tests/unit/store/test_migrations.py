"""The tables: made by migrations, by several gateways at once, as the models say."""

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from tests.support import postgresql

from chorus_cluster.store import database as database_module
from chorus_cluster.store.database import Database, upgrade
from chorus_cluster.store.models import Base
from chorus_cluster.store.url import StoreError


async def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    def differences(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, Base.metadata)

    assert await database.write(lambda connection: connection.run_sync(differences)) == []


async def test_each_revision_follows_the_one_before(store_url: str) -> None:
    folder = Path(database_module.__file__).parent / "migrations"
    revisions = [script.revision for script in ScriptDirectory(str(folder)).walk_revisions()][::-1]
    assert revisions[0] == "001"
    database = Database(store_url)
    try:
        for revision in revisions:
            await database.write(lambda connection, revision=revision: connection.run_sync(upgrade, revision))  # type: ignore[misc]
        # What is there already is left alone.
        await database.migrate()
        tables = await database.read(
            lambda connection: connection.run_sync(lambda sync: inspect(sync).get_table_names())
        )
    finally:
        await database.close()
    assert set(tables) == {*Base.metadata.tables, "alembic_version"}


async def test_gateways_that_start_together_migrate_once(store_url: str) -> None:
    databases = [Database(store_url) for _ in range(6)]
    try:
        await asyncio.gather(*(database.migrate() for database in databases))
        found = await databases[0].read(
            lambda connection: connection.exec_driver_sql("SELECT version_num FROM alembic_version")
        )
        assert len(found.all()) == 1
    finally:
        for database in databases:
            await database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", "must begin with sqlite:/// or postgresql://"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("no url", "is no URL"),
    ],
)
def test_other_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Database(url)


def test_what_libpq_calls_sslmode_is_understood() -> None:
    database = Database("postgresql://chorus:secret@db.example.com/chorus?sslmode=require")
    assert str(database) == ("postgresql+asyncpg://chorus:***@db.example.com/chorus?ssl=require")


async def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    database = Database("postgresql://chorus:secret@127.0.0.1:1/chorus")
    with pytest.raises(StoreError) as error:
        await database.migrate()
    assert "127.0.0.1:1/chorus" in str(error.value)
    assert "secret" not in str(error.value)
    await database.close()


async def test_a_wrong_database_is_told(postgresql_server: postgresql.Server) -> None:
    there = postgresql_server.url("postgres")
    for url in (postgresql_server.url("missing"), f"{there}&unknown=1", f"{there}&sslmode=no"):
        database = Database(url)
        with pytest.raises(StoreError, match="can't be used"):
            await database.migrate()
        await database.close()
