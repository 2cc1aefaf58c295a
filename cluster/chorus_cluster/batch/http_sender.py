"""A Sender for a running server."""

from types import TracebackType

import httpx

from chorus_cluster.batch.errors import ServerRefused
from chorus_cluster.batch.lines import CHAT_COMPLETIONS_URL
from chorus_cluster.batch.sender import Reply, Unreachable

_CONNECT_TIMEOUT_S = 10.0
_HEALTH_TIMEOUT_S = 5.0


class HttpSender:
    """Sends requests to the server at `url`, over at most `concurrency` connections.

    `timeout_s` bounds the time without a byte from the server, which for a batch row is its whole computation.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        concurrency: int = 32,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=concurrency + 1, max_keepalive_connections=concurrency + 1),
            transport=transport,
        )

    async def __aenter__(self) -> "HttpSender":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def send(self, body: bytes) -> Reply:
        try:
            response = await self._client.post(self.url + CHAT_COMPLETIONS_URL, content=body)
        except httpx.RequestError as error:
            raise Unreachable(self._describe(error)) from error
        return Reply(
            response.status_code,
            response.content,
            response.headers.get("x-request-id"),
            _seconds(response.headers.get("retry-after")),
        )

    async def is_ready(self) -> bool:
        try:
            response = await self._client.get(f"{self.url}/health", timeout=_HEALTH_TIMEOUT_S)
        except httpx.RequestError:
            return False
        return response.status_code == httpx.codes.OK

    async def check_server(self) -> None:
        """Raises ServerRefused if what answers at the address isn't a server that lets us in.

        A server that does not answer yet passes: it may be starting, and the runner waits for it.
        """
        try:
            response = await self._client.get(f"{self.url}/v1/models", timeout=_CONNECT_TIMEOUT_S)
        except httpx.UnsupportedProtocol as error:
            raise ServerRefused(f"{self.url} is not an address: it must begin with http:// or https://") from error
        except httpx.InvalidURL as error:
            raise ServerRefused(f"{self.url} is not an address: {error}") from error
        except httpx.RequestError:
            return
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ServerRefused(f"{self.url} refuses this API key (status {response.status_code})")
        if 300 <= response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            raise ServerRefused(f"{self.url} is not a Chorus server: GET /v1/models answers {response.status_code}")

    def _describe(self, error: httpx.RequestError) -> str:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return f"can't connect to {self.url}"
        if isinstance(error, httpx.TimeoutException):
            return f"{self.url} does not answer in time"
        return f"the connection to {self.url} broke"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in its form of seconds; the date form is not something our server sends."""
    try:
        seconds = float(retry_after) if retry_after is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
