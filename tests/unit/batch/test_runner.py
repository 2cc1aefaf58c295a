import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.batch.rows import batch_row, read_records, write_rows

from chorus_cluster.batch.errors import InputUnusable, OutputUnwritable, ServerGone
from chorus_cluster.batch.journal import Journal
from chorus_cluster.batch.runner import RetryPolicy, Runner, RunnerLimits
from chorus_cluster.batch.sender import Reply, Unreachable
from chorus_cluster.batch.survey import survey_input

OK = Reply(200, b'{"object": "chat.completion"}', "req-1")
FAST = RetryPolicy(max_attempts=3, first_delay_s=0.001, max_delay_s=0.004, patience_s=0.05)

Behavior = Callable[[str, int], Awaitable[Reply]]


class FakeServer:
    """A Sender whose behavior gets the row's text and the number of times it was asked, from 1."""

    def __init__(self, behavior: Behavior, is_ready: bool = True) -> None:
        self.behavior = behavior
        self.ready = is_ready
        self.asked: Counter[str] = Counter()
        self.most_in_flight = self.in_flight = 0
        self.most_bytes = self.bytes = 0

    async def send(self, body: bytes) -> Reply:
        name = json.loads(body)["messages"][0]["content"]
        self.asked[name] += 1
        self.in_flight += 1
        self.bytes += len(body)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.most_bytes = max(self.most_bytes, self.bytes)
        try:
            return await self.behavior(name, self.asked[name])
        finally:
            self.in_flight -= 1
            self.bytes -= len(body)

    async def is_ready(self) -> bool:
        return self.ready


async def run_job(
    tmp_path: Path,
    server: FakeServer,
    *,
    limits: RunnerLimits | None = None,
    policy: RetryPolicy = FAST,
    during: Callable[[Runner], Awaitable[None]] | None = None,
) -> tuple[bool, list[dict[str, object]]]:
    """Runs the job of IN.jsonl; `during` runs beside it. Returns whether it is complete, and OUT.jsonl."""
    survey = survey_input(tmp_path / "IN.jsonl")
    with Journal(tmp_path / "OUT.jsonl", survey.fingerprint, survey.num_lines) as journal:
        runner = Runner(tmp_path / "IN.jsonl", survey, journal, server, limits=limits, policy=policy)
        beside = asyncio.create_task(during(runner)) if during is not None else None
        is_complete = await runner.run()
        if beside is not None:
            await beside
    return is_complete, read_records(tmp_path / "OUT.jsonl")


def names(records: list[dict[str, object]]) -> list[object]:
    return sorted(str(record["custom_id"]) for record in records)


def error_codes(records: list[dict[str, object]]) -> dict[object, object]:
    return {record["custom_id"]: record["error"]["code"] for record in records if isinstance(record["error"], dict)}


def statuses(records: list[dict[str, object]]) -> dict[object, object]:
    return {
        record["custom_id"]: record["response"]["status_code"]
        for record in records
        if isinstance(record["response"], dict)
    }


async def answer(name: str, time: int) -> Reply:
    await asyncio.sleep(0.001)
    return OK


async def test_every_row_has_one_record_whatever_its_line_holds(tmp_path: Path) -> None:
    rows = [batch_row("a"), b"{", batch_row("b") | {"url": "/v1/x"}, b"", batch_row("a"), {"body": {}}, batch_row("c")]
    write_rows(tmp_path / "IN.jsonl", rows)
    server = FakeServer(answer)
    is_complete, records = await run_job(tmp_path, server)
    assert is_complete
    assert statuses(records) == {"a": 200, "c": 200}
    assert Counter(record["error"]["code"] for record in records if isinstance(record["error"], dict)) == {
        "invalid_json_line": 1,
        "invalid_url": 1,
        "duplicate_custom_id": 1,
        "missing_custom_id": 1,
    }
    assert server.asked == {"a": 1, "c": 1}
    lines = sorted(int(str(record["id"]).rpartition("_")[2]) for record in records)
    assert lines == [1, 2, 3, 5, 6, 7]


async def test_concurrency_is_bounded_and_used(tmp_path: Path) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row(str(index)) for index in range(40)])
    server = FakeServer(answer)
    await run_job(tmp_path, server, limits=RunnerLimits(concurrency=5))
    assert server.most_in_flight == 5


async def test_bytes_in_flight_are_bounded_but_a_huge_row_gets_through(tmp_path: Path) -> None:
    rows = [batch_row(str(index), pad="x" * (5000 if index == 7 else 300)) for index in range(20)]
    write_rows(tmp_path / "IN.jsonl", rows)
    server = FakeServer(answer)
    is_complete, records = await run_job(tmp_path, server, limits=RunnerLimits(concurrency=20, in_flight_bytes=1000))
    assert is_complete
    assert len(statuses(records)) == 20
    assert 5000 < server.most_bytes < 5200  # the huge one was alone
    assert server.most_in_flight == 2


async def test_a_line_beyond_the_limit_is_an_error_record(tmp_path: Path) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("b", pad="x" * 5000), batch_row("c")])
    _, records = await run_job(tmp_path, FakeServer(answer), limits=RunnerLimits(max_line_bytes=1000))
    assert statuses(records) == {"a": 200, "c": 200}
    assert error_codes(records) == {None: "line_too_long"}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_row_in_trouble_is_asked_again(tmp_path: Path, status: int) -> None:
    async def behavior(name: str, time: int) -> Reply:
        return Reply(status, b"{}") if name == "b" and time < 3 else OK

    write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("b")])
    server = FakeServer(behavior)
    _, records = await run_job(tmp_path, server)
    assert statuses(records) == {"a": 200, "b": 200}
    assert server.asked == {"a": 1, "b": 3}


@pytest.mark.parametrize("status", [400, 404, 413, 500])
async def test_any_other_answer_is_the_rows_own(tmp_path: Path, status: int) -> None:
    async def behavior(name: str, time: int) -> Reply:
        return Reply(status, b'{"error": {"message": "no"}}', "req-9")

    write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    server = FakeServer(behavior)
    is_complete, records = await run_job(tmp_path, server)
    assert is_complete
    assert records[0]["response"] == {
        "status_code": status,
        "request_id": "req-9",
        "body": {"error": {"message": "no"}},
    }
    assert server.asked["a"] == 1


async def test_retry_after_holds_the_whole_job(tmp_path: Path) -> None:
    started: list[float] = []

    async def behavior(name: str, attempt: int) -> Reply:
        started.append(time.monotonic())
        return Reply(429, b"{}", retry_after_s=0.2) if len(started) == 1 else OK

    write_rows(tmp_path / "IN.jsonl", [batch_row(str(index)) for index in range(6)])
    await run_job(tmp_path, FakeServer(behavior), limits=RunnerLimits(concurrency=1))
    assert started[1] - started[0] >= 0.2


async def test_a_row_that_a_ready_server_never_takes_is_given_up(tmp_path: Path) -> None:
    async def behavior(name: str, time: int) -> Reply:
        if name == "poison":
            raise Unreachable("the connection broke")
        return Reply(503, b'{"error": {}}') if name == "refused" else OK

    write_rows(tmp_path / "IN.jsonl", [batch_row(name) for name in ("poison", "a", "refused", "b")])
    server = FakeServer(behavior)
    is_complete, records = await run_job(tmp_path, server)
    assert is_complete
    assert statuses(records) == {"a": 200, "b": 200, "refused": 503}
    assert error_codes(records) == {"poison": "server_unreachable"}
    assert server.asked["poison"] == server.asked["refused"] == FAST.max_attempts


async def test_a_server_that_is_gone_ends_the_run_and_the_next_run_finishes_it(tmp_path: Path) -> None:
    async def behavior(name: str, time: int) -> Reply:
        if int(name) >= 3 and not server.ready:
            raise Unreachable("can't connect")
        return OK

    write_rows(tmp_path / "IN.jsonl", [batch_row(str(index)) for index in range(8)])
    server = FakeServer(behavior, is_ready=False)
    with pytest.raises(ServerGone, match="can't connect"):
        await run_job(tmp_path, server, limits=RunnerLimits(concurrency=4))
    assert names(read_records(tmp_path / "OUT.jsonl")) == ["0", "1", "2"]
    server.ready = True
    is_complete, records = await run_job(tmp_path, server)
    assert is_complete
    assert names(records) == [str(index) for index in range(8)]
    assert server.asked["0"] == server.asked["1"] == 1


async def test_overload_is_not_taken_for_absence(tmp_path: Path) -> None:
    async def behavior(name: str, time: int) -> Reply:
        return OK if time == 40 else Reply(429, b"{}")

    write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    policy = RetryPolicy(max_attempts=100, first_delay_s=0.001, max_delay_s=0.002, patience_s=0.01)
    is_complete, _ = await run_job(tmp_path, FakeServer(behavior, is_ready=False), policy=policy)
    assert is_complete


async def test_a_row_that_is_always_refused_for_overload_is_given_up(tmp_path: Path) -> None:
    async def behavior(name: str, time: int) -> Reply:
        return Reply(429, b'{"error": {}}')

    write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    is_complete, records = await run_job(tmp_path, FakeServer(behavior, is_ready=False))
    assert is_complete
    assert statuses(records) == {"a": 429}


async def test_stop_finishes_what_is_under_way_and_starts_nothing(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def behavior(name: str, time: int) -> Reply:
        await release.wait()
        return OK

    async def stop(runner: Runner) -> None:
        while server.in_flight < 3:
            await asyncio.sleep(0.001)
        runner.stop()
        release.set()

    write_rows(tmp_path / "IN.jsonl", [batch_row(str(index)) for index in range(10)])
    server = FakeServer(behavior)
    is_complete, records = await run_job(tmp_path, server, limits=RunnerLimits(concurrency=3), during=stop)
    assert not is_complete
    assert names(records) == ["0", "1", "2"]
    is_complete, records = await run_job(tmp_path, server)
    assert is_complete
    assert names(records) == [str(index) for index in range(10)]
    assert set(server.asked.values()) == {1}


async def test_stop_starts_no_row_that_waits_for_room(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def behavior(name: str, time: int) -> Reply:
        await release.wait()
        return OK

    async def stop(runner: Runner) -> None:
        while not server.in_flight:
            await asyncio.sleep(0.001)
        runner.stop()
        release.set()

    write_rows(tmp_path / "IN.jsonl", [batch_row(str(index), pad="x" * 500) for index in range(6)])
    server = FakeServer(behavior)
    limits = RunnerLimits(concurrency=4, in_flight_bytes=700)
    is_complete, records = await run_job(tmp_path, server, limits=limits, during=stop)
    assert (is_complete, names(records)) == (False, ["0"])
    assert server.asked == {"0": 1}


async def test_stop_does_not_wait_for_a_server_that_hangs_nor_for_a_delay(tmp_path: Path) -> None:
    async def behavior(name: str, time: int) -> Reply:
        if name == "waits":
            return Reply(503, b"{}", retry_after_s=500)
        await asyncio.sleep(500)
        return OK

    async def stop(runner: Runner) -> None:
        while not runner.counts.num_retries:
            await asyncio.sleep(0.001)
        runner.stop()

    write_rows(tmp_path / "IN.jsonl", [batch_row("hangs"), batch_row("waits")])
    limits = RunnerLimits(concurrency=2, stop_grace_s=0.01)
    is_complete, records = await run_job(tmp_path, FakeServer(behavior), limits=limits, during=stop)
    assert (is_complete, records) == (False, [])


async def test_an_input_that_changes_meanwhile_ends_the_run(tmp_path: Path) -> None:
    async def behavior(name: str, time: int) -> Reply:
        with (tmp_path / "IN.jsonl").open("ab") as file:
            file.write(b"more\n")
        return OK

    write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("b")])
    with pytest.raises(InputUnusable, match="changed while it was read"):
        await run_job(tmp_path, FakeServer(behavior), limits=RunnerLimits(concurrency=1))


async def test_a_disk_that_takes_no_record_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(journal: Journal, record: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "_write", fail)
    write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("b")])
    with pytest.raises(OutputUnwritable, match="No space left"):
        await run_job(tmp_path, FakeServer(answer))
