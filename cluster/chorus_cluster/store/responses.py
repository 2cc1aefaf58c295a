"""Stored responses: what every query of them says, whichever gateway asks.

An owner's rows are seen by that owner alone, and a row whose time is over by nobody, deleted or not.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Integer,
    Row,
    Select,
    and_,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from chorus_cluster.store.database import Database
from chorus_cluster.store.metrics import StoreMetrics, measured
from chorus_cluster.store.models import ACTIVE_STATUSES, ResponseEventRow, ResponseRow
from chorus_cluster.store.writes import GroupedWrites

# Responses that follow one another. Each has a message at least, of which a request may have as many.
MAX_CHAIN = 4096
# Characters of all their items together: far more than a context holds, and no more than a gateway reads in a moment.
MAX_CHAIN_CHARACTERS = 2**25
# Rows that one statement deletes, so that none holds a lock for long.
_DELETE_BATCH = 500
# Built once: SQLAlchemy compiles a statement once too, but looks for what it has compiled by all its parts.
_INSERT = insert(ResponseRow)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`body` is the API's response object; `input_items` are those that were new with it."""

    id: str
    owner: str
    body: dict[str, Any]
    input_items: list[dict[str, Any]]
    previous_id: str | None = None
    has_events: bool = False
    # Seconds since the epoch; None: not in the background, or it has ended.
    lease_expires: float | None = None

    @property
    def is_active(self) -> bool:
        return self.body["status"] in ACTIVE_STATUSES


@dataclass(frozen=True, slots=True)
class Link:
    """What a response adds to the conversation."""

    id: str
    status: str
    input_items: list[dict[str, Any]]
    output: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Chain:
    """Responses that follow one another, oldest first.

    `is_whole`: nothing is missing before the oldest. `is_cut`: what is missing is too much to be read.
    """

    links: list[Link]
    is_whole: bool
    is_cut: bool


class ResponseStore:
    """Responses in a database that all gateways share. Errors of all methods: Unavailable."""

    def __init__(
        self,
        database: Database,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
        metrics: StoreMetrics | None = None,
    ) -> None:
        self.metrics = StoreMetrics() if metrics is None else metrics
        self._database = database
        self._ttl_s = ttl_s
        self._clock = clock
        self._writes = GroupedWrites(database)

    @measured
    async def add(self, response: StoredResponse) -> None:
        """Keeps a new response for the time to live; what it goes on from is kept as long."""
        now = self._clock()
        values = {
            "id": response.id,
            "owner": response.owner,
            "created": now,
            "expires": now + self._ttl_s,
            "previous_id": response.previous_id,
            "input_items": _encode(response.input_items),
            "has_events": response.has_events,
            "lease_expires": response.lease_expires,
            **_body_values(response.body),
        }

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(_INSERT, values)
            if response.previous_id is not None:
                chain = await _chain_ids(connection, response.previous_id, self._visible(response.owner))
                await connection.execute(
                    update(ResponseRow).where(ResponseRow.id.in_(chain)).values(expires=now + self._ttl_s)
                )

        await self._writes.run(write)

    @measured
    async def get(self, id: str, owner: str) -> StoredResponse | None:
        query = select(ResponseRow.__table__).where(ResponseRow.id == id, self._visible(owner))
        row = (await self._rows(query)).one_or_none()
        return None if row is None else _to_stored(row)

    @measured
    async def status(self, id: str, owner: str) -> str | None:
        return await self._status(id, owner)

    async def _status(self, id: str, owner: str) -> str | None:
        query = select(ResponseRow.status).where(ResponseRow.id == id, self._visible(owner))
        row = (await self._rows(query)).one_or_none()
        return None if row is None else row.status

    @measured
    async def chain(self, id: str, owner: str) -> Chain | None:
        """A response with all that it goes on from."""
        visible = self._visible(owner)
        columns = (
            ResponseRow.id,
            ResponseRow.previous_id,
            ResponseRow.status,
            ResponseRow.input_items,
            ResponseRow.output,
        )

        async def read(connection: AsyncConnection) -> tuple[list[str], Sequence[Row[Any]]]:
            ids = await _chain_ids(connection, id, visible)
            return ids, (await connection.execute(select(*columns).where(ResponseRow.id.in_(ids), visible))).all()

        ids, rows = await self._database.read(read)
        found = {row.id: row for row in rows}
        newest_first = [found[each] for each in ids if each in found]
        if not newest_first:
            return None
        missing = newest_first[-1].previous_id
        links = [Link(row.id, row.status, json.loads(row.input_items), json.loads(row.output)) for row in newest_first]
        is_cut = missing is not None and await self._status(missing, owner) is not None
        return Chain(links[::-1], missing is None and len(links) == len(ids), is_cut)

    @measured
    async def delete(self, id: str, owner: str) -> bool:
        """Whether there was one."""
        query = delete(ResponseRow).where(ResponseRow.id == id, self._visible(owner))

        async def write(connection: AsyncConnection) -> bool:
            return (await connection.execute(query)).rowcount > 0

        return await self._writes.run(write)

    @measured
    async def advance(
        self,
        id: str,
        events: Sequence[tuple[int, str]] = (),
        body: dict[str, Any] | None = None,
        *,
        lease_expires: float | None = None,
        if_lease_before: float | None = None,
    ) -> bool:
        """Writes what a response in the background has come to; False if it has ended already, or is gone.

        `events`: (last sequence number, text) of some that follow one another. `body`: the response as it is from now
        on. `if_lease_before`: only if its lease has ended by then.
        """
        values: dict[str, Any] = {"lease_expires": lease_expires}
        if body is not None:
            values |= _body_values(body)
        where = [ResponseRow.id == id, ResponseRow.status.in_(ACTIVE_STATUSES)]
        if if_lease_before is not None:
            where.append(ResponseRow.lease_expires < if_lease_before)
        rows = [{"response_id": id, "sequence_number": number, "text": text} for number, text in events]

        async def write(connection: AsyncConnection) -> bool:
            done = await connection.execute(update(ResponseRow).where(*where).values(values))
            if done.rowcount == 0:
                return False
            if rows:
                await connection.execute(insert(ResponseEventRow), rows)
            return True

        return await self._writes.run(write)

    @measured
    async def events(self, id: str, after: int, limit: int) -> list[tuple[int, str]]:
        """(last sequence number, text) of pieces that were written at once, from the one on that holds the event behind
        `after`. Whether an owner may see them is for `get` to say."""
        query = (
            select(ResponseEventRow.sequence_number, ResponseEventRow.text)
            .where(ResponseEventRow.response_id == id, ResponseEventRow.sequence_number > after)
            .order_by(ResponseEventRow.sequence_number)
            .limit(limit)
        )
        return [(row.sequence_number, row.text) for row in await self._rows(query)]

    @measured
    async def last_event(self, id: str) -> int:
        """Its sequence number; -1: there are none."""
        query = select(func.max(ResponseEventRow.sequence_number)).where(ResponseEventRow.response_id == id)
        last: int | None = (await self._rows(query)).scalar_one()
        return -1 if last is None else last

    @measured
    async def abandoned(self, before: float) -> list[StoredResponse]:
        """Responses, of whomever, that nobody has looked after since."""
        query = (
            select(ResponseRow.__table__)
            .where(ResponseRow.status.in_(ACTIVE_STATUSES), ResponseRow.lease_expires < before)
            .limit(_DELETE_BATCH)
        )
        return [_to_stored(row) for row in await self._rows(query)]

    @measured
    async def delete_expired(self) -> int:
        """Deletes some of what has expired; returns how many."""
        expired = select(ResponseRow.id).where(ResponseRow.expires <= self._clock()).limit(_DELETE_BATCH)

        async def write(connection: AsyncConnection) -> int:
            return (await connection.execute(delete(ResponseRow).where(ResponseRow.id.in_(expired)))).rowcount

        return await self._database.write(write)

    async def _rows(self, query: Select[Any]) -> CursorResult[Any]:
        """Of a query; they are all there."""
        return await self._database.read(lambda connection: connection.execute(query))

    def _visible(self, owner: str) -> ColumnElement[bool]:
        return and_(ResponseRow.owner == owner, ResponseRow.expires > self._clock())


async def _chain_ids(connection: AsyncConnection, id: str, visible: ColumnElement[bool]) -> list[str]:
    """The response's id, that of the one before it, and so on, as far as they are read."""
    num_characters = func.length(ResponseRow.input_items) + func.length(ResponseRow.output)
    first = select(
        ResponseRow.id,
        ResponseRow.previous_id,
        literal_column("1", Integer).label("depth"),
        num_characters.label("num_characters"),
    ).where(ResponseRow.id == id, visible)
    chain = first.cte("chain", recursive=True)
    earlier = select(
        ResponseRow.id, ResponseRow.previous_id, chain.c.depth + 1, chain.c.num_characters + num_characters
    ).where(
        ResponseRow.id == chain.c.previous_id,
        visible,
        chain.c.depth < MAX_CHAIN,
        chain.c.num_characters < MAX_CHAIN_CHARACTERS,
    )
    chain = chain.union_all(earlier)
    return list((await connection.execute(select(chain.c.id).order_by(chain.c.depth))).scalars())


def _encode(items: list[dict[str, Any]]) -> str:
    return json.dumps(items, ensure_ascii=False, separators=(",", ":"))


def _body_values(body: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in body.items() if name != "output"}
    return {"status": body["status"], "body": rest, "output": _encode(body["output"])}


def _to_stored(row: Row[Any]) -> StoredResponse:
    return StoredResponse(
        id=row.id,
        owner=row.owner,
        body=row.body | {"output": json.loads(row.output)},
        input_items=json.loads(row.input_items),
        previous_id=row.previous_id,
        has_events=row.has_events,
        lease_expires=row.lease_expires,
    )
