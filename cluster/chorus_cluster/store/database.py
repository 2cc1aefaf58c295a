"""The database behind the store: SQLite for one machine, PostgreSQL for a cluster."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from chorus_cluster.errors import Unavailable
from chorus_cluster.store.url import StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What a URL may begin with, and the driver that is taken.
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
# Seconds that one statement may wait for another's lock, or for the server.
_BUSY_TIMEOUT_S = 15.0
_POOL_SIZE = 8
# Any number that nobody else takes for a lock in the same database.
_MIGRATION_LOCK = 0x63686F72
# Whatever a database has; the driver's own are not always wrapped.
_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """A pool of connections. One for each gateway replica."""

    def __init__(self, url: str) -> None:
        """`url`: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`. Errors: StoreError."""
        self._url = _to_driver_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self._url) if self.is_sqlite else _postgresql_engine(self._url)
        self._running: set[asyncio.Task[Any]] = set()

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    async def migrate(self) -> None:
        """Brings the tables up to date. Several gateways may do so at once; one does it, the others wait.

        Errors: StoreError.
        """
        # Of its own: it may take longer than a request waits.
        engine = _sqlite_engine(self._url) if self.is_sqlite else create_async_engine(self._url, poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                if not self.is_sqlite:
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                await connection.run_sync(upgrade)
        except (*_ERRORS, TypeError, ValueError) as error:
            # The last two: the URL has parameters that the driver doesn't know. Errors' own texts may hold the URL.
            logger.debug("Migrating failed", exc_info=True)
            raise StoreError(f"the store at {self} can't be used ({type(error).__name__})") from None
        finally:
            await engine.dispose()

    async def write(self, operation: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Runs it in a transaction. It ends, and is committed, even if the caller is cancelled.

        Errors: Unavailable, whatever the database has; the operation's own.
        """
        return await self._to_its_end(self._run(operation, AsyncEngine.begin))

    async def read(self, operation: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """For single reads: each sees what is committed, and waits for no writer. Errors: as `write`."""

        async def without_transaction(connection: AsyncConnection) -> Result:
            return await operation(await connection.execution_options(isolation_level="AUTOCOMMIT"))

        return await self._to_its_end(self._run(without_transaction, AsyncEngine.connect))

    async def close(self) -> None:
        """Returns when all that had begun has ended."""
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()

    async def _run(
        self,
        operation: Callable[[AsyncConnection], Awaitable[Result]],
        connect: Callable[[AsyncEngine], contextlib.AbstractAsyncContextManager[AsyncConnection]],
    ) -> Result:
        with _as_unavailable():
            async with connect(self._engine) as connection:
                return await operation(connection)

    async def _to_its_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """In a task of its own: whoever is cancelled in the middle of a statement costs the pool a connection."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever still waits hears of it.


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        logger.error("The store failed", exc_info=error)
        raise Unavailable("The store of responses does not answer.") from None


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Migrates by a connection that is in a transaction."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _to_driver_url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        raise StoreError("store.url: is no URL") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise StoreError("store.url: must begin with sqlite:/// or postgresql://")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise StoreError("store.url: must name a file, as sqlite:////var/lib/chorus/store.sqlite3 does")
    if "sslmode" in url.query:
        # What libpq calls it, and most URLs have.
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    return url.set(drivername=driver)


def _postgresql_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=_POOL_SIZE,
        # What a restarted server or a firewall has cut is noticed before it is used.
        pool_pre_ping=True,
        pool_timeout=_BUSY_TIMEOUT_S,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "command_timeout": _BUSY_TIMEOUT_S},
    )


def _sqlite_engine(url: URL) -> AsyncEngine:
    assert url.database is not None
    Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
    url = url.set(database=str(Path(url.database).expanduser()))
    engine = create_async_engine(url, pool_size=_POOL_SIZE, connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        # Transactions are begun below; the module would begin some by itself, and not all.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Readers don't wait for the writer, and a commit needs no fsync: what a power cut takes is the last of it.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # At once for writing: two that only read at first could never both go on to write.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
