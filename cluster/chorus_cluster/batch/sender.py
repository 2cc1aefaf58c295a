"""What a batch job needs of a server, near or far."""

from dataclasses import dataclass
from typing import Protocol


class Unreachable(Exception):
    """No answer came: the connection failed, broke or timed out. The message says which."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to one request: HTTP status, JSON body, the server's request id, and its Retry-After in seconds."""

    status: int
    body: bytes
    request_id: str | None = None
    retry_after_s: float | None = None


class Sender(Protocol):
    """Sends chat completion requests. Calls run concurrently; cancelling one abandons its request."""

    async def send(self, body: bytes) -> Reply:
        """Sends a JSON body. Raises Unreachable."""
        ...

    async def is_ready(self) -> bool:
        """Whether the server could answer a request now."""
        ...
