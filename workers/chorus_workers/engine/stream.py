"""One request's tokens on the replica's side."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from chorus_workers.engine.output import TokenLogprobs
from chorus_workers.engine.request import FinishReason, Refused

# An answer in harmony begins with a header of three tokens; the fourth is the first that its reader sees.
_FIRST_VISIBLE_TOKEN = 4


class EngineDeadError(Exception):
    """The engine's process failed or hangs; every request of this worker must move to another one."""


@dataclass(slots=True)
class TokenChunk:
    """What a request has produced since the last chunk."""

    token_ids: list[int] = field(default_factory=list)
    # As many as token_ids if the request asked for them, else none.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    # Set on the last chunk.
    finish_reason: FinishReason | None = None
    # For the client, when finish_reason is ERROR.
    error_message: str = ""
    # On the first chunk: seconds spent waiting, and prompt tokens found in the prefix cache.
    queue_time_s: float = 0.0
    num_cached_tokens: int = 0


class StreamOwner(Protocol):
    """What a stream asks of the engine's client."""

    def forget(self, stream: "TokenStream", *, abort: bool) -> None: ...

    def next_delivery_at(self) -> float: ...


class TokenStream:
    """Read by one task until a chunk has a finish reason; closed always."""

    __slots__ = (
        "_chunk",
        "_error",
        "_is_awake",
        "_num_tokens",
        "_owner",
        "_waiter",
        "client_id",
        "due_at",
        "engine_id",
    )

    def __init__(self, owner: StreamOwner, engine_id: str, client_id: str) -> None:
        self.engine_id = engine_id
        self.client_id = client_id
        # When what is here may be delivered, on the event loop's clock. The first token, the first that is text, and
        # the end: at once.
        self.due_at = 0.0
        self._num_tokens = 0
        self._owner = owner
        self._chunk = TokenChunk()
        self._error: Refused | EngineDeadError | None = None
        self._is_awake = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> TokenChunk:
        """The next chunk, when it is due. Errors: Refused (before any chunk only); EngineDeadError."""
        if not self._is_awake:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not self._chunk.token_ids:
            raise self._error
        chunk, self._chunk = self._chunk, TokenChunk()
        self._is_awake = self._error is not None
        self.due_at = self._owner.next_delivery_at()
        return chunk

    def close(self) -> None:
        """Ends the request if it is still running."""
        self._owner.forget(self, abort=True)

    def start(self, queue_time_s: float, num_cached_tokens: int) -> None:
        self._chunk.queue_time_s = queue_time_s
        self._chunk.num_cached_tokens = num_cached_tokens

    def add(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        self._chunk.token_ids.append(token_id)
        self._num_tokens += 1
        if self._num_tokens == _FIRST_VISIBLE_TOKEN:
            self.due_at = 0.0
        if logprobs is not None:
            self._chunk.logprobs.append(logprobs)

    def finish(self, reason: FinishReason, message: str) -> None:
        self._chunk.finish_reason = reason
        self._chunk.error_message = message
        self.due_at = 0.0
        self._owner.forget(self, abort=False)

    def fail(self, error: Refused | EngineDeadError) -> None:
        """Raises `error` out of the next read, after the tokens that are here."""
        self._error = error
        self._owner.forget(self, abort=False)
        self.wake()

    def wake(self) -> None:
        self._is_awake = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
