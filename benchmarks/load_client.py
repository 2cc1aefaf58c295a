"""A load client that costs little: raw HTTP/1.1 and HTTP/2 over asyncio, nothing parsed but the last message.

`python benchmarks/load_client.py --protocol http --address 127.0.0.1:8000 --streams 32 --tokens 512` opens the
connections, starts all streams at once, and prints one JSON object when the last has ended. It is a process of its
own, so that its CPU time is never taken for the server's.

HTTP/2 (RFC 9113) is spoken just as far as a gRPC call needs: one HEADERS frame and one DATA frame out; DATA in. Whether
a call went well is read from its last message, which must carry usage, so trailers need no HPACK decoder.
"""

import argparse
import asyncio
import itertools
import json
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chorus_protos.v1 import chat_pb2

STREAMS_PER_CONNECTION = 16
GRPC_METHOD = "/chorus.v1.ChatService/StreamChatCompletion"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE_SETTING = 4
_LARGEST_WINDOW = 2**31 - 1
_TAIL_BYTES = 2**16


@dataclass(slots=True)
class Stream:
    """One request's times in seconds, on the clock of `time.perf_counter`, and what came of it."""

    marker: bytes
    finished: Callable[[], None]
    started_at: float = 0.0
    first_byte_at: float = 0.0
    first_text_at: float = 0.0
    ended_at: float = 0.0
    num_messages: int = 0
    tail: bytes = b""
    error: str | None = None
    has_ended: bool = field(default=False)

    def feed(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.first_byte_at:
            self.first_byte_at = now
        if not self.first_text_at and self.marker in data:
            self.first_text_at = now
        self.num_messages += 1

    def end(self, error: str | None = None) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.error = error
            self.ended_at = time.perf_counter()
            self.finished()


@dataclass(frozen=True, slots=True)
class Api:
    """A streaming route: what its last event holds, and what the count of tokens stands behind in it."""

    path: str
    last_event: bytes
    usage: bytes


CHAT = Api("/v1/chat/completions", b"data: [DONE]", b'"completion_tokens":')
RESPONSES = Api("/v1/responses", b"event: response.incomplete", b'"output_tokens":')


class HttpStream(asyncio.Protocol):
    """One connection, one streaming answer."""

    def __init__(self, request: bytes, stream: Stream, api: Api = CHAT) -> None:
        self._api = api
        self._request = request
        self._stream = stream
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self) -> None:
        assert self._transport is not None
        self._stream.started_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if not stream.num_messages and not data.startswith(b"HTTP/1.1 200 "):
            stream.end(data[:200].decode("latin-1"))
            return
        stream.feed(data)
        # A response's last event holds all of it.
        stream.tail = (stream.tail + data)[-_TAIL_BYTES:]
        _, found, rest = stream.tail.rpartition(self._api.last_event)
        if found and b"\n\n" in rest:
            stream.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.end(f"the connection ended: {exc}")

    def num_tokens(self) -> int:
        """From the usage that stands in the stream's last event."""
        _, found, rest = self._stream.tail.rpartition(self._api.usage)
        digits = bytes(itertools.takewhile(lambda byte: byte in b"0123456789", rest.lstrip()))
        return int(digits) if found else 0


class GrpcConnection(asyncio.Protocol):
    """One HTTP/2 connection with several calls of StreamChatCompletion."""

    def __init__(self, authority: str, message: bytes, streams: list[Stream]) -> None:
        self._authority = authority
        self._message = message
        self._streams = {1 + 2 * index: stream for index, stream in enumerate(streams)}
        self._bodies = {number: bytearray() for number in self._streams}
        self._buffer = bytearray()
        self._unacknowledged = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE_SETTING, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - 65535)
        transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, window))

    def start(self) -> None:
        assert self._transport is not None
        headers = header_block(
            {
                ":method": "POST",
                ":scheme": "http",
                ":path": GRPC_METHOD,
                ":authority": self._authority,
                "content-type": "application/grpc",
                "te": "trailers",
            }
        )
        body = struct.pack(">BI", 0, len(self._message)) + self._message
        for number, stream in self._streams.items():
            stream.started_at = time.perf_counter()
            request = frame(_HEADERS, _END_HEADERS, number, headers) + frame(_DATA, _END_STREAM, number, body)
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 9:
            end = 9 + int.from_bytes(buffer[:3], "big")
            if len(buffer) < end:
                return
            kind, flags = buffer[3], buffer[4]
            number = int.from_bytes(buffer[5:9], "big")
            payload = bytes(buffer[9:end])
            del buffer[:end]
            self._take_frame(kind, flags, number, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in self._streams.values():
            stream.end(f"the connection ended: {exc}")

    def num_tokens(self) -> int:
        """From the usage of each call's last message."""
        return sum(tokens_of_last_message(bytes(body)) for body in self._bodies.values())

    def _take_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA:
            self._streams[number].feed(payload)
            body = self._bodies[number]
            body += payload
            self._unacknowledged += len(payload)
            if self._unacknowledged > 2**20:
                self._transport.write(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged)))
                self._unacknowledged = 0
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, payload))
        if kind == _RST_STREAM and number in self._streams:
            self._streams[number].end(f"reset with code {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            self.connection_lost(None)
        elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self._streams[number].end()


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload


def header_block(headers: dict[str, str]) -> bytes:
    """HPACK literals without indexing or Huffman coding (RFC 7541, 6.2.2); each string under 127 bytes."""
    block = b""
    for name, value in headers.items():
        block += b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
    return block


def tokens_of_last_message(body: bytes) -> int:
    """The usage in the last of a sequence of gRPC messages; 0 if there is none."""
    position, message = 0, b""
    while position + 5 <= len(body):
        length = int.from_bytes(body[position + 1 : position + 5], "big")
        message = body[position + 5 : position + 5 + length]
        position += 5 + length
    deltas = chat_pb2.ChatCompletionChunk.FromString(message).deltas
    return next((delta.usage.completion_tokens for delta in deltas if delta.HasField("usage")), 0)


def http_request(api: Api, address: str, model: str, tokens: int) -> bytes:
    body: dict[str, object] = {"model": model, "stream": True, "temperature": 0}
    if api is CHAT:
        body |= {"messages": [{"role": "user", "content": "Go on."}], "max_completion_tokens": tokens}
        body |= {"stream_options": {"include_usage": True}}
    else:
        body |= {"input": "Go on.", "max_output_tokens": tokens, "store": False}
    content = json.dumps(body).encode()
    head = (
        f"POST {api.path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def grpc_request(model: str, tokens: int) -> bytes:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Go on.")
    request = chat_pb2.ChatCompletionRequest(
        model=model, messages=[message], max_completion_tokens=tokens, temperature=0
    )
    return request.SerializeToString()


async def run_load(
    protocol: str, address: str, model: str, num_streams: int, tokens: int, marker: str
) -> dict[str, object]:
    """Runs `num_streams` streams at once. Raises RuntimeError if one fails or delivers another number of tokens."""
    loop = asyncio.get_running_loop()
    all_ended = asyncio.Event()
    num_open = num_streams

    def finished() -> None:
        nonlocal num_open
        num_open -= 1
        if not num_open:
            all_ended.set()

    streams = [Stream(marker.encode(), finished) for _ in range(num_streams)]
    connections: list[HttpStream | GrpcConnection]
    if protocol in ("http", "responses"):
        api = CHAT if protocol == "http" else RESPONSES
        request = http_request(api, address, model, tokens)
        connections = [HttpStream(request, stream, api) for stream in streams]
    else:
        message = grpc_request(model, tokens)
        groups = [streams[i : i + STREAMS_PER_CONNECTION] for i in range(0, num_streams, STREAMS_PER_CONNECTION)]
        connections = [GrpcConnection(address, message, group) for group in groups]
    host, _, port = address.rpartition(":")
    for connection in connections:
        await loop.create_connection(lambda connection=connection: connection, host, int(port))  # type: ignore[misc]
    await asyncio.sleep(0.05)  # HTTP/2 settings have gone to and fro
    for connection in connections:
        connection.start()
    await all_ended.wait()
    if errors := [stream.error for stream in streams if stream.error]:
        raise RuntimeError(f"{len(errors)} of {num_streams} streams failed, the first one so: {errors[0]}")
    num_tokens = sum(connection.num_tokens() for connection in connections)
    if num_tokens != num_streams * tokens:
        raise RuntimeError(f"{num_tokens} tokens came, {num_streams * tokens} were asked for")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "num_tokens": num_tokens,
        "wall_s": max(stream.ended_at for stream in streams) - min(stream.started_at for stream in streams),
        "first_byte_s": [stream.first_byte_at - stream.started_at for stream in streams],
        "first_text_s": [stream.first_text_at - stream.started_at for stream in streams],
        "num_reads": sum(stream.num_messages for stream in streams),
        "client_cpu_s": usage.ru_utime + usage.ru_stime,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=("http", "grpc", "responses"), required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", default="chorus-fake")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--marker", default="token", help="text whose first appearance is the first token of text")
    parser.add_argument("--rounds", type=int, default=1, help="loads one after the other, one line of output for each")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between them")
    arguments = parser.parse_args()
    for _ in range(arguments.rounds):
        load = run_load(
            arguments.protocol,
            arguments.address,
            arguments.model,
            arguments.streams,
            arguments.tokens,
            arguments.marker,
        )
        try:
            print(json.dumps(asyncio.run(load)), flush=True)
        except (RuntimeError, OSError) as error:
            sys.exit(f"load client: {error}")
        time.sleep(arguments.pause)


if __name__ == "__main__":
    main()
