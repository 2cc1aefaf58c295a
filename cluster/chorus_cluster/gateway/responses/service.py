"""The Responses API behind HTTP and gRPC: what is created, kept, found again and ended.

A response's way: what came before is read from the store, the conversation is rendered and admitted as any chat
request, its events become items, and the whole is kept before its end is told. In the background all but the first part
happens in a task of the gateway that took the request, which writes to the store as it goes (`background.py`).
"""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Final

from chorus_cluster.errors import ChorusError, ContextTooLong, InvalidRequest, ResponseNotFound
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.responses.background import BackgroundJobs, Job
from chorus_cluster.gateway.responses.body import Body, new_body
from chorus_cluster.gateway.responses.history import NO_STORE, History
from chorus_cluster.gateway.responses.ids import is_response_id, new_response_id
from chorus_cluster.gateway.responses.prompt import Prompt, build_prompt, check, shortened
from chorus_cluster.gateway.responses.request import ResponseRequest
from chorus_cluster.gateway.responses.run import ResponseRun, shown_error
from chorus_cluster.gateway.responses.writer import ResponseWriter
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.store.responses import ResponseStore, StoredResponse
from chorus_protos.v1 import engine_pb2

# Of an event; more than any response has, and no more than databases take.
MAX_SEQUENCE_NUMBER: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Started:
    """A response that the engine has admitted. Whoever gets it must `aclose` its stream."""

    id: str
    run: ResponseRun
    stream: ChatStream
    request: ResponseRequest
    owner: str


class ResponsesService:
    """One for each gateway replica; its methods may run concurrently. `store`: None keeps nothing."""

    def __init__(
        self, chat: ChatService, store: ResponseStore | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._chat = chat
        self._store = store
        self.history = History(store)
        self._clock = clock
        self.jobs = None if store is None else BackgroundJobs(chat, store, clock)

    async def start(self, request: ResponseRequest, owner: str, deadline_unix_s: float | None) -> Started:
        """Errors: those of `ChatService.start`; ResponseNotFound for the previous response."""
        is_stored = self._is_stored(request)
        request = replace(request, items=await self.history.resolved(request.items, owner))
        prompt = await self._prompt(request, owner)
        try:
            stream = await self._start(prompt, owner, deadline_unix_s)
        except ContextTooLong as error:
            prompt = self._shortened(request, prompt, await self._chat.models.get(), error)
            stream = await self._start(prompt, owner, deadline_unix_s)
        id = new_response_id()
        echo = request.echo | {"store": is_stored}
        body = new_body(id, stream.created, echo, status="in_progress")
        return Started(id, self._run(request, body, writes_events=request.stream), stream, request, owner)

    async def create(self, request: ResponseRequest, owner: str, deadline_unix_s: float | None) -> Body:
        """The whole response, kept. Errors: those of `start`, and of its stream; Unavailable of the store."""
        started = await self.start(request, owner, deadline_unix_s)
        try:
            async for events in started.stream:
                started.run.take(events)
        finally:
            await started.stream.aclose()
        await self._keep(started)
        return started.run.body

    async def events(self, started: Started) -> AsyncGenerator[list[str], None]:
        """All events. A failure is told by the last of them, and then raised as what a client may see of it.

        Errors: ChorusError.
        """
        run = started.run
        yield run.created()
        failure: ChorusError | None = None
        try:
            async for events in started.stream:
                yield run.take(events)
            # Whoever has seen the end can go on from it at once.
            await self._keep(started)
        except Exception as error:  # What there is of the answer is out: all that is left is to say so behind it.
            failure = shown_error(error, started.id)
            yield run.fail(failure)
        yield run.ended()
        if failure is not None:
            raise failure

    async def _keep(self, started: Started) -> None:
        """Stores a response that has ended, if it is to be stored."""
        if self._store is None or not started.run.body["store"]:
            return
        await self._store.add(
            StoredResponse(
                started.id,
                started.owner,
                started.run.body,
                started.request.items,
                previous_id=started.request.previous_id,
            )
        )

    async def start_in_background(
        self, request: ResponseRequest, owner: str, deadline_unix_s: float | None
    ) -> StoredResponse:
        """Errors: those of `start`, but for the workers': they are awaited in the background."""
        if self._store is None or self.jobs is None:
            raise InvalidRequest("background", NO_STORE)
        self.jobs.check_room()
        request = replace(request, items=await self.history.resolved(request.items, owner))
        prompt = await self._prompt(request, owner)
        model = await self._chat.models.get()
        try:
            with prompt.naming():
                check(self._chat, prompt, model)
        except ContextTooLong as error:
            prompt = self._shortened(request, prompt, model, error)
        body = new_body(new_response_id(), int(self._clock()), request.echo | {"store": True}, status="queued")
        job = Job(
            StoredResponse(body["id"], owner, body, request.items, request.previous_id, has_events=request.stream),
            prompt.chat,
            self._run(request, body, writes_events=request.stream),
            deadline_unix_s,
        )
        return await self.jobs.start(job)

    async def get(self, id: str, owner: str) -> StoredResponse:
        """Errors: ResponseNotFound, also where it is another owner's."""
        found = await self._store.get(id, owner) if self._store is not None and is_response_id(id) else None
        if found is None:
            raise ResponseNotFound(id)
        return found

    async def delete(self, id: str, owner: str) -> None:
        """In the background, it ends. Errors: ResponseNotFound."""
        if self._store is None or self.jobs is None or not (is_response_id(id) and await self._store.delete(id, owner)):
            raise ResponseNotFound(id)
        self.jobs.end(id)

    async def cancel(self, id: str, owner: str) -> Body:
        """The response as it is then; one that has ended by itself stays as it is.

        Errors: ResponseNotFound; InvalidRequest where it is not in the background.
        """
        found = await self.get(id, owner)
        assert self._store is not None and self.jobs is not None
        if not found.body["background"]:
            raise InvalidRequest(None, "Only a response that was created with 'background': true can be cancelled.")
        cancelled = found.body | {"status": "cancelled"}
        if found.is_active and await self._store.advance(id, body=cancelled):
            self.jobs.end(id)
            return cancelled
        return (await self.get(id, owner)).body

    def follow(self, found: StoredResponse, after: int) -> AsyncGenerator[list[str], None]:
        """The events behind `after` of a response in the background, to its end, whichever gateway makes it."""
        if self.jobs is None or not found.has_events:
            raise InvalidRequest("stream", "needs a response that was created with 'background' and 'stream'")
        return self.jobs.follow(found.id, found.owner, after)

    async def _prompt(self, request: ResponseRequest, owner: str) -> Prompt:
        return build_prompt(request, await self.history.before(request, owner))

    async def _start(self, prompt: Prompt, owner: str, deadline_unix_s: float | None) -> ChatStream:
        with prompt.naming():
            return await self._chat.start(prompt.chat, deadline_unix_s=deadline_unix_s, owner=owner)

    def _shortened(
        self, request: ResponseRequest, prompt: Prompt, model: engine_pb2.ModelInfo, error: ContextTooLong
    ) -> Prompt:
        if not request.truncate:
            raise error
        with prompt.naming():
            return shortened(self._chat, prompt, model, error)

    def _is_stored(self, request: ResponseRequest) -> bool:
        if self._store is None and request.store:
            raise InvalidRequest("store", NO_STORE)
        return self._store is not None and request.store is not False

    def _run(self, request: ResponseRequest, body: Body, *, writes_events: bool) -> ResponseRun:
        writer = ResponseWriter(
            body["id"],
            request.toolbox,
            sealed_reasoning=request.sealed_reasoning,
            writes_events=writes_events,
        )
        return ResponseRun(body, writer, self._clock)
