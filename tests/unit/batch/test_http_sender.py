import httpx
import pytest

from chorus_cluster.batch.errors import ServerRefused
from chorus_cluster.batch.http_sender import HttpSender
from chorus_cluster.batch.sender import Reply, Unreachable


def sender(respond: object, api_key: str | None = None, url: str = "http://server:8000/") -> HttpSender:
    assert callable(respond)
    return HttpSender(url, api_key=api_key, transport=httpx.MockTransport(respond))


async def test_a_request_is_posted_as_it_is_and_the_answer_kept() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert (request.method, str(request.url)) == ("POST", "http://server:8000/v1/chat/completions")
        assert request.content == b'{"a":1}'
        assert request.headers["content-type"] == "application/json"
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(429, content=b"{}", headers={"x-request-id": "req-7", "retry-after": "1.5"})

    async with sender(respond, "secret") as server:
        assert await server.send(b'{"a":1}') == Reply(429, b"{}", "req-7", 1.5)


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_strange_retry_after_is_none(value: str) -> None:
    async with sender(lambda request: httpx.Response(503, headers={"retry-after": value})) as server:
        assert (await server.send(b"{}")).retry_after_s is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("x"), "can't connect to http://server:8000"),
        (httpx.ReadTimeout("x"), "http://server:8000 does not answer in time"),
        (httpx.DecodingError("x"), "the connection to http://server:8000 broke"),
        (httpx.RemoteProtocolError("x"), "the connection to http://server:8000 broke"),
    ],
)
async def test_no_answer_is_unreachable(error: Exception, words: str) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise error

    async with sender(respond) as server:
        with pytest.raises(Unreachable, match=words):
            await server.send(b"{}")
        assert not await server.is_ready()
        await server.check_server()


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (404, False)])
async def test_readiness_is_what_health_says(status: int, expected: bool) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/health"
        return httpx.Response(status)

    async with sender(respond) as server:
        assert await server.is_ready() is expected


@pytest.mark.parametrize(("status", "words"), [(401, "API key"), (403, "API key"), (404, "not a Chorus"), (301, "301")])
async def test_a_server_of_another_kind_is_refused(status: int, words: str) -> None:
    async with sender(lambda request: httpx.Response(status)) as server:
        with pytest.raises(ServerRefused, match=words):
            await server.check_server()


@pytest.mark.parametrize("status", [200, 429, 503])
async def test_a_server_that_is_busy_or_starting_passes(status: int) -> None:
    async with sender(lambda request: httpx.Response(status)) as server:
        await server.check_server()


@pytest.mark.parametrize("url", ["localhost:8000", "http://[::1", "ftp://server"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    async with HttpSender(url) as server:
        with pytest.raises(ServerRefused, match="is not an address"):
            await server.check_server()
