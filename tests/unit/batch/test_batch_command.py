"""The command as users run it: a process of its own, a server over TCP, real signals."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.batch.rows import batch_row, read_records, write_rows

SERVER = Path(__file__).with_name("server_process.py")
COMMAND = "import typer; from chorus_cluster.batch.command import batch; typer.run(batch)"
DEADLINE_S = 60.0


@dataclass
class TestServer:
    __test__ = False

    url: str
    log: Path

    def asked(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines() if self.log.exists() else [])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestServer]:
    port_file, log = tmp_path / "port", tmp_path / "asked.log"
    command = [sys.executable, str(SERVER), str(port_file), str(log), "0.02"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None)
        yield TestServer(f"http://127.0.0.1:{port_file.read_text()}", log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(DEADLINE_S)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_longer(path: Path, length: int) -> None:
    wait_until(lambda: size(path) > length)


def start(tmp_path: Path, server: TestServer, *options: str) -> "subprocess.Popen[str]":
    paths = [str(tmp_path / "IN.jsonl"), "--output", str(tmp_path / "OUT.jsonl"), "--url", server.url]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *paths, *options], stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, errors


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_job_ends_with_a_record_for_every_row(tmp_path: Path, server: TestServer) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row("abc"), b"{", batch_row("bad")])
    status, errors = finish(start(tmp_path, server))
    assert status == 0
    assert f"3 of 3 rows are in {tmp_path / 'OUT.jsonl'}, 2 of them failed." in errors
    records = {str(record["custom_id"]): record for record in read_records(tmp_path / "OUT.jsonl")}
    assert records["abc"]["response"] == {
        "status_code": 200,
        "request_id": "",
        "body": {"id": "chatcmpl-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "cba"}}]},
    }
    assert records["bad"]["response"] == {
        "status_code": 400,
        "request_id": "",
        "body": {"error": {"message": "messages: wrong", "param": "messages"}},
    }
    assert records["None"]["response"] is None
    content = (tmp_path / "OUT.jsonl").read_bytes()
    status, errors = finish(start(tmp_path, server))
    assert (status, (tmp_path / "OUT.jsonl").read_bytes()) == (0, content)


@pytest.mark.slow
def test_kill_9_at_any_point_loses_and_repeats_no_row(tmp_path: Path, server: TestServer) -> None:
    num_rows, concurrency, output = 400, 8, tmp_path / "OUT.jsonl"
    names = [f"row-{index}" for index in range(num_rows)]
    write_rows(tmp_path / "IN.jsonl", [batch_row(name) for name in names])
    whens = random.Random(20)
    kills = 0
    while kills < 6:
        process = start(tmp_path, server, "--concurrency", str(concurrency))
        wait_until_longer(output, size(output))
        time.sleep(whens.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        status, _ = finish(process)
        assert status == -signal.SIGKILL
        kills += 1
        assert 0 < len(output.read_bytes().splitlines()) < num_rows
        if kills % 2:  # a write that the kill has torn, which a kill alone seldom hits
            whole, _, last = output.read_bytes().rstrip(b"\n").rpartition(b"\n")
            output.write_bytes(whole + b"\n" * bool(whole) + last[: whens.randrange(1, len(last))])
    status, errors = finish(start(tmp_path, server, "--concurrency", str(concurrency)))
    assert status == 0
    assert f"{num_rows} of {num_rows} rows" in errors
    records = read_records(output)
    assert sorted(str(record["custom_id"]) for record in records) == sorted(names)
    for record in records:
        response = record["response"]
        assert isinstance(response, dict)
        assert response["body"]["choices"][0]["message"]["content"] == str(record["custom_id"])[::-1]
    # Only what was under way at a kill, or torn, was asked again.
    assert sum(server.asked().values()) <= num_rows + kills * (concurrency + 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_cleanly(tmp_path: Path, server: TestServer, number: signal.Signals) -> None:
    output = tmp_path / "OUT.jsonl"
    write_rows(tmp_path / "IN.jsonl", [batch_row(f"row-{index}") for index in range(2000)])
    process = start(tmp_path, server, "--concurrency", "4")
    wait_until(lambda: size(output))
    process.send_signal(number)
    status, errors = finish(process)
    assert status == 128 + number
    assert "The same command goes on from here." in errors
    assert "Traceback" not in errors
    answered = Counter(str(record["custom_id"]) for record in read_records(output))
    assert answered == server.asked()  # those under way were finished, and none was started


def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path, server: TestServer) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("hang")])
    process = start(tmp_path, server)
    wait_until(lambda: size(tmp_path / "OUT.jsonl") and server.asked()["hang"])
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, errors = finish(process)
    assert status == 130
    assert "Traceback" not in errors
    assert [record["custom_id"] for record in read_records(tmp_path / "OUT.jsonl")] == ["a"]


def test_two_runs_on_one_output_do_not_mix(tmp_path: Path, server: TestServer) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row(f"row-{index}") for index in range(200)])
    first = start(tmp_path, server, "--concurrency", "2")
    wait_until(lambda: size(tmp_path / "OUT.jsonl"))
    status, errors = finish(start(tmp_path, server))
    assert status == 1
    assert "is being written by another run" in errors
    assert finish(first)[0] == 0
    assert len(read_records(tmp_path / "OUT.jsonl")) == 200


def test_a_changed_input_is_refused(tmp_path: Path, server: TestServer) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    assert finish(start(tmp_path, server))[0] == 0
    content = (tmp_path / "OUT.jsonl").read_bytes()
    write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("b")])
    status, errors = finish(start(tmp_path, server))
    assert status == 1
    assert "the input has changed since" in errors
    assert (tmp_path / "OUT.jsonl").read_bytes() == content


def test_a_server_that_does_not_come_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    nobody = TestServer("http://127.0.0.1:9", tmp_path / "asked.log")
    status, errors = finish(start(tmp_path, nobody, "--patience", "0.1"))
    assert status == 1
    assert "no useful answer for 0.1 s: can't connect to http://127.0.0.1:9" in errors
    assert "0 of 1 rows" in errors


def test_an_output_that_can_t_be_looked_at_is_one_line(tmp_path: Path, server: TestServer) -> None:
    write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    status, errors = finish(start(tmp_path, server, "--output", "x" * 300))
    assert status == 1
    assert "can't be opened for writing: File name too long" in errors
    assert "Traceback" not in errors


def test_a_path_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "a[" / "b]:x:"
    folder.mkdir(parents=True)
    write_rows(folder / "IN.jsonl", [b"{"])
    status, errors = finish(start(folder, TestServer("http://127.0.0.1:9", tmp_path / "asked.log")))
    assert status == 0
    assert f"1 of 1 rows are in {folder / 'OUT.jsonl'}, 1 of them failed." in errors


def test_input_and_output_must_differ(tmp_path: Path, server: TestServer) -> None:
    path = write_rows(tmp_path / "OUT.jsonl", [batch_row("a")])
    (tmp_path / "IN.jsonl").symlink_to(path)
    status, errors = finish(start(tmp_path, server))
    assert status == 1
    assert "are the same file" in errors
