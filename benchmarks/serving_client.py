"""Clients of a chat server that stream and take times, in as many processes as they need."""

import asyncio
import json
import multiprocessing
import re
import resource
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from urllib.parse import urlsplit

from benchmarks.load_client import HttpStream, Stream
from benchmarks.serving_summary import Record

_START_TIMEOUT_S = 120.0
_FIRST_TEXT = re.compile(rb'"(?:content|reasoning|reasoning_content|arguments)": ?"[^"]')
_FINISH_REASON = re.compile(rb'"finish_reason": ?"(\w+)"')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
_ERROR_CODE = re.compile(rb'"code": ?"?(\w+)')


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    # With the API's prefix: http://127.0.0.1:8000/v1
    url: str
    model: str
    api_key: str = ""
    timeout_s: float = 600.0

    def request(self, prompt: str, num_tokens: int, more: dict[str, object]) -> bytes:
        """A streaming chat completion, as it goes over the wire; `more` are fields of its body."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_completion_tokens": num_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(body | more).encode()
        parts = urlsplit(self.url)
        head = [
            f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1",
            f"host: {parts.netloc}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            "connection: close",
        ]
        if self.api_key:
            head.append(f"authorization: Bearer {self.api_key}")
        return "\r\n".join([*head, "", ""]).encode() + content


@dataclass(slots=True)
class TimedStream(Stream):
    """Also knows when each read came that held events. Headers are none: some servers send them before any token."""

    read_at: list[float] = field(default_factory=list)

    def feed(self, data: bytes) -> None:
        self.num_messages += 1
        if not self.read_at and b"data:" not in data:
            return
        now = time.perf_counter()
        self.read_at.append(now)
        if not self.first_text_at and _FIRST_TEXT.search(data):
            self.first_text_at = now


async def send(target: Target, request: bytes, due_at: float | None = None) -> Record:
    """Runs one request. due_at: when it should have been sent, if it waits for that."""
    ended = asyncio.Event()
    stream = TimedStream(b"", ended.set)
    connection = HttpStream(request, stream)
    parts = urlsplit(target.url)
    context = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)
    begin = time.perf_counter() if due_at is None else due_at
    loop = asyncio.get_running_loop()
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(target.timeout_s):
            transport, _ = await loop.create_connection(lambda: connection, parts.hostname, port, ssl=context)
            if due_at is None:
                begin = time.perf_counter()
            connection.start()
            await ended.wait()
    except TimeoutError:
        stream.end("timeout")
    except OSError:
        stream.end("connect")
    # One that went well is the server's to close, as it was asked to.
    if stream.error and transport is not None:
        transport.abort()
    return to_record(stream, begin, connection.num_tokens())


def to_record(stream: TimedStream, begin: float, num_tokens: int) -> Record:
    finish_reason, prompt_tokens = _FINISH_REASON.search(stream.tail), _PROMPT_TOKENS.search(stream.tail)
    return Record(
        started_at=begin,
        read_at=tuple(stream.read_at),
        first_text_at=stream.first_text_at,
        num_prompt_tokens=int(prompt_tokens[1]) if prompt_tokens else 0,
        num_tokens=num_tokens,
        finish_reason=finish_reason[1].decode() if finish_reason else "",
        error=error_kind(stream.error, stream.tail, num_tokens),
    )


def error_kind(error: str | None, tail: bytes, num_tokens: int) -> str | None:
    """Few words for what went wrong, so that they can be counted; None, if nothing did."""
    if error is None:
        if num_tokens:
            return None
        code = _ERROR_CODE.search(tail) if b'"error"' in tail else None
        return f"in the stream: {code[1].decode()}" if code else "no usage"
    if error.startswith("HTTP/1.1 "):
        return f"HTTP {error[9:12]}"
    return "connection" if error.startswith("the connection ended") else error


async def run_streams(
    target: Target, requests: Sequence[bytes], num_streams: int, due_after: Sequence[float] | None = None
) -> list[Record]:
    """Runs all requests, at most `num_streams` at once: each as soon as one has ended or, with `due_after`, not before
    so many seconds have passed. A request that is due and has to wait for others waits on its own time."""
    begin = time.perf_counter()
    records: list[Record] = []
    todo: Iterator[int] = iter(range(len(requests)))

    async def slot() -> None:
        for index in todo:
            due_at = None if due_after is None else begin + due_after[index]
            if due_at is not None:
                await asyncio.sleep(due_at - time.perf_counter())
            records.append(await send(target, requests[index], due_at))

    await asyncio.gather(*(slot() for _ in range(min(num_streams, len(requests)))))
    return records


def run_processes(
    target: Target,
    requests: Sequence[bytes],
    num_streams: int,
    num_processes: int,
    due_after: Sequence[float] | None = None,
) -> tuple[list[Record], float]:
    """Deals requests and streams out to so many processes, which begin together. Returns the records, and the CPU
    seconds that the clients took. Errors: RuntimeError, if one of them ends without a result."""
    num_processes = min(num_processes, num_streams, len(requests))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_processes)
    ends: list[Connection] = []
    processes = []
    for index in range(num_processes):
        ours, theirs = context.Pipe(duplex=False)
        share = len(range(index, num_streams, num_processes))
        due = None if due_after is None else due_after[index::num_processes]
        arguments = (target, requests[index::num_processes], share, due, barrier, theirs)
        process = context.Process(target=_client, args=arguments, daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    records: list[Record] = []
    cpu_s = 0.0
    try:
        for end in ends:
            its_records, its_cpu_s = end.recv()
            records += its_records
            cpu_s += its_cpu_s
    except EOFError:
        raise RuntimeError("a client process ended without a result") from None
    finally:
        for process in processes:
            process.join(_START_TIMEOUT_S)
    return records, cpu_s


def _client(
    target: Target,
    requests: Sequence[bytes],
    num_streams: int,
    due_after: Sequence[float] | None,
    barrier: Barrier,
    result: Connection,
) -> None:
    barrier.wait(_START_TIMEOUT_S)
    before = resource.getrusage(resource.RUSAGE_SELF)
    records = asyncio.run(run_streams(target, requests, num_streams, due_after))
    after = resource.getrusage(resource.RUSAGE_SELF)
    result.send((records, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
