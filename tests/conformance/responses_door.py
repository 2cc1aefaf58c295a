"""A response that is made, what the model is shown of it, and a gateway that keeps responses."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
from tests.conformance.rows import Body, Door, Reply, read_events
from tests.support.chat import ANSWER, encode

from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.harmony.marked_text import decode_marked
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_cluster.store.database import Database
from chorus_cluster.store.responses import ResponseStore
from chorus_protos.v1 import engine_pb2

DOOR = Door("/v1/responses", {"model": "fake-model", "input": "Hi", "seed": 1})
TIME: Body = {"type": "function", "name": "get_time"}
PATCH: Body = {"type": "custom", "name": "apply_patch"}
MAPS: Body = {"type": "namespace", "name": "maps", "description": "Places.", "tools": [TIME]}
PATCH_CALL = (
    '<|channel|>commentary to=functions.apply_patch <|constrain|>json<|message|>{"input": "*** Begin Patch"}<|call|>'
)
TEXT_CALL = "<|channel|>commentary to=functions.apply_patch code<|message|>xxx<|call|>"


def prompt_of(reply: Reply) -> str:
    return decode_marked(list(reply.requests[0].prompt_token_ids))


async def prompt(**fields: Any) -> str:
    return prompt_of(await DOOR.served(fields))


async def guide(**fields: Any) -> engine_pb2.Guide:
    """What holds the answer to its form."""
    (request,) = (await DOOR.served(fields)).requests
    return request.guide


async def output(script: str | None = None, **fields: Any) -> list[Body]:
    found: list[Body] = (await DOOR.served(fields, script)).body["output"]
    return found


@dataclass(frozen=True, slots=True)
class Keeper:
    """A gateway with a store."""

    http: httpx.AsyncClient
    engine: FakeEngineClient
    database: Database

    async def post(self, **fields: Any) -> httpx.Response:
        return await self.http.post(DOOR.path, json=DOOR.body | fields)

    async def create(self, **fields: Any) -> Body:
        response = await self.post(**fields)
        assert response.status_code == 200, response.text
        body: Body = response.json()
        return body

    async def stream(self, **fields: Any) -> list[Body]:
        events, _ = read_events((await self.post(stream=True, **fields)).text)
        return events

    def prompt(self) -> str:
        """Of the last request."""
        return decode_marked(list(self.engine.requests[-1].prompt_token_ids))


@contextlib.asynccontextmanager
async def keeper(script: str = ANSWER) -> AsyncIterator[Keeper]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/store.sqlite3")
        await database.migrate()
        engine = FakeEngineClient(encode(script))
        chat = ChatService(engine)
        responses = ResponsesService(chat, ResponseStore(database, ttl_s=1000.0))
        transport = httpx.ASGITransport(app=build_http_app(chat, responses=responses))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield Keeper(http, engine, database)
        assert responses.jobs is not None
        await responses.jobs.close()
        await database.close()
