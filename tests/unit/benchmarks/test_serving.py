"""The serving benchmark: its arithmetic, and its clients against a server that is built in the usual way."""

import asyncio
import json
import math
import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest
import uvicorn
from benchmarks.serving import arrival_times, make_prompts, with_settings, words
from benchmarks.serving_client import Target, error_kind, run_streams
from benchmarks.serving_summary import Record, percentiles_ms, summarize, wall_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from chorus_cluster.harmony.encoding import load_encoding

STEP_S = 0.005


def record(started_at: float, ttft_s: float, itl_s: float, num_tokens: int = 5, error: str | None = None) -> Record:
    read_at = tuple(started_at + ttft_s + index * itl_s for index in range(num_tokens))
    return Record(started_at, read_at, read_at[0], 10, num_tokens, "length", error)


def test_a_load_in_figures() -> None:
    records = [record(0.0, 0.1, 0.01), record(0.0, 0.3, 0.02), record(1.0, 0.1, 0.04), Record(0.0, error="HTTP 429")]
    row = summarize(records, ttft_s=0.2, itl_s=0.03)
    assert row["requests"] == 4
    assert row["errors"] == {"HTTP 429": 1}
    assert row["finish_reasons"] == {"length": 3}
    # The last token came at 1.0 + 0.1 + 4 x 0.04.
    assert row["wall_s"] == 1.26
    assert (row["prompt_tokens"], row["output_tokens"], row["out_tok_s"]) == (30, 15, round(15 / 1.26, 1))
    assert row["ttft_ms"] == {"p50": 100.0, "p90": 300.0, "p99": 300.0}
    assert row["itl_ms"] == row["gap_ms"] == {"p50": 20.0, "p90": 40.0, "p99": 40.0}
    # One of them begins too late, one goes on too slowly, one was refused.
    assert row["goodput"] == {"share": 0.25, "requests_per_s": round(1 / 1.26, 3)}


def test_reads_that_hold_several_tokens_make_gaps_longer_but_not_latencies() -> None:
    read_at = (1.0, 1.4, 1.8)
    row = summarize([Record(0.5, read_at, 1.0, 10, 9, "stop")])
    assert row["itl_ms"] == {"p50": 100.0, "p90": 100.0, "p99": 100.0}
    assert row["gap_ms"] == {"p50": 400.0, "p90": 400.0, "p99": 400.0}


def test_a_load_that_failed_is_no_throughput() -> None:
    row = summarize([Record(0.0, error="connect"), Record(0.0, (1.0,), error="timeout")])
    assert row == {"requests": 2, "errors": {"connect": 1, "timeout": 1}, "finish_reasons": {}}
    assert math.isinf(wall_of([Record(3.0, error="connect")]))


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentiles_ms([index / 1000 for index in range(100, 0, -1)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles_ms([0.007]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert percentiles_ms([]) == {}


@pytest.mark.parametrize(
    ("error", "tail", "num_tokens", "kind"),
    [
        (None, b"", 5, None),
        ("HTTP/1.1 429 Too Many Requests\r\n", b"", 0, "HTTP 429"),
        ("the connection ended: None", b"", 0, "connection"),
        ("timeout", b"", 0, "timeout"),
        (None, b'data: {"error":{"message":"m","code":"deadline_exceeded"}}', 0, "in the stream: deadline_exceeded"),
        (None, b"data: [DONE]", 0, "no usage"),
    ],
)
def test_failures_have_kinds(error: str | None, tail: bytes, num_tokens: int, kind: str | None) -> None:
    assert error_kind(error, tail, num_tokens) == kind


def test_prompts_have_as_many_tokens_as_asked_for_and_differ() -> None:
    first, second = make_prompts(2, 700, words(), seed=3)
    assert first != second
    assert [len(load_encoding().encode(prompt)) for prompt in (first, second)] == [700, 700]
    assert make_prompts(2, 700, words(), seed=3) == [first, second]


def test_arrivals_have_the_rate() -> None:
    times = arrival_times(4000, 20.0, seed=1)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(4000 / 20.0, rel=0.05)


def test_settings_go_to_their_sections() -> None:
    config = with_settings({"model": {"path": "demo"}}, ["workers.max_num_seqs=8", "workers.kv.prefix_cache=false"])
    assert config == {"model": {"path": "demo"}, "workers": {"max_num_seqs": 8, "kv": {"prefix_cache": False}}}


async def chat(request: Request) -> Response:
    body = await request.json()
    if body["model"] != "m":
        return JSONResponse({"error": {"message": "no such model"}}, 404)
    assert body["stream"] and body["stream_options"]["include_usage"]
    num_tokens = body["max_completion_tokens"]

    async def events() -> AsyncIterator[str]:
        for index in range(num_tokens):
            await asyncio.sleep(STEP_S)
            delta = {"content": " token"} if index >= 2 else {"role": "assistant", "content": ""}
            finish_reason = "length" if index == num_tokens - 1 else None
            yield f"data: {json.dumps({'choices': [{'delta': delta, 'finish_reason': finish_reason}]})}\n\n"
        usage = {"prompt_tokens": 3, "completion_tokens": num_tokens, "completion_tokens_details": None}
        yield f"data: {json.dumps({'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/api/v1/chat/completions", chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
    server.should_exit = True
    await serving
    listener.close()


async def test_streams_go_round_until_all_requests_are_done(url: str) -> None:
    target = Target(url, "m")
    records = await run_streams(target, [target.request("a", 20, {})] * 7, num_streams=3)
    assert len(records) == 7
    for one in records:
        assert (one.error, one.num_prompt_tokens, one.num_tokens, one.finish_reason) == (None, 3, 20, "length")
        # Headers, two events without text, and then some.
        assert STEP_S <= one.ttft_s < one.first_text_at - one.started_at
        assert one.itl_s >= STEP_S
    ends = sorted(one.read_at[-1] for one in records)
    assert sum(one.started_at < ends[0] for one in records) == 3


async def test_a_request_that_is_due_waits_on_its_own_time(url: str) -> None:
    target = Target(url, "m")
    due_after = [0.0, 0.02, 0.3]
    records = await run_streams(target, [target.request("a", 20, {})] * 3, num_streams=1, due_after=due_after)
    first, second, third = (one.started_at for one in records)
    assert second - first == pytest.approx(0.02)
    assert third - first == pytest.approx(0.3)
    # It was its turn only when the first had ended.
    assert records[1].ttft_s > 18 * STEP_S - 0.02


async def test_failures_are_counted_and_not_raised(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    wrong, absent, slow = Target(url, "x"), Target(f"http://127.0.0.1:{port}/v1", "m"), Target(url, "m", timeout_s=0.05)
    kinds = [(await run_streams(target, [target.request("a", 50, {})], 1))[0].error for target in (wrong, absent, slow)]
    assert kinds == ["HTTP 404", "connect", "timeout"]


async def test_the_command_shares_the_load_among_processes(url: str) -> None:
    load = ("--streams", "3", "--requests", "5", "--isl", "5", "--osl", "20", "--clients", "2", "--repeats", "2")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.serving", "--url", url, "--name", "m", "--itl-ms", "1000", *load),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    for repeat, row in enumerate(map(json.loads, output.splitlines())):
        assert (row["repeat"], row["requests"], row["clients"], row["errors"]) == (repeat, 5, 2, {})
        assert (row["output_tokens"], row["finish_reasons"]) == (100, {"length": 5})
        assert (row["goodput"]["share"], row["limits"]) == (1.0, {"ttft_ms": None, "itl_ms": 1000.0})
    assert repeat == 1
