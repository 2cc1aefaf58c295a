"""A batch job through a real cluster: one validator for all, and no row lost or repeated by a kill."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cluster import Cluster, chorus, echo_model, running, wait_until

pytestmark = pytest.mark.slow

NUM_GOOD = 80
# What is wrong, and the field that the answer must name.
REFUSED: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "type": ({"temperature": "hot"}, 400, "temperature"),
    "range": ({"top_p": 1.5}, 400, "top_p"),
    "model": ({"model": "other"}, 404, "model"),
    "role": ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
    "empty": ({"messages": []}, 400, "messages"),
    "long": ({"messages": [{"role": "user", "content": "word " * 200_000}]}, 400, "messages"),
    "large": ({"messages": [{"role": "user", "content": "x" * 20_000_000}]}, 413, None),
}


def row(cluster: Cluster, custom_id: str, **fields: Any) -> dict[str, Any]:
    body = cluster.chat_body(max_completion_tokens=13, **fields)
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_input(path: Path, cluster: Cluster) -> None:
    lines = [json.dumps(row(cluster, f"good-{index}")) for index in range(NUM_GOOD)]
    lines += [json.dumps(row(cluster, name) | {"body": cluster.chat_body(**REFUSED[name][0])}) for name in REFUSED]
    lines.insert(30, '{"custom_id": "torn", "method"')
    lines.insert(40, json.dumps(row(cluster, "good-0")))
    lines.append(json.dumps(row(cluster, "elsewhere") | {"url": "/v1/embeddings"}))
    path.write_text("".join(f"{line}\n" for line in lines))


def start(folder: Path, cluster: Cluster) -> "subprocess.Popen[bytes]":
    arguments = [str(folder / "IN.jsonl"), "--output", str(folder / "OUT.jsonl"), "--url", cluster.url]
    return chorus("batch", *arguments, "--concurrency", "4", log=folder / "batch.log")


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_every_row_is_answered_once_though_the_job_is_killed_twice(tmp_path: Path) -> None:
    output = tmp_path / "OUT.jsonl"
    settings = {"model": {"path": echo_model(0.005), "name": "test"}, "workers": {"num_cpus": 0.5}}
    with running(tmp_path, settings) as cluster:
        write_input(tmp_path / "IN.jsonl", cluster)
        for num_done in (10, 35):
            job = start(tmp_path, cluster)
            wait_until(lambda enough=num_done: count_lines(output) >= enough, 30, "rows are done")  # type: ignore[misc]
            job.send_signal(signal.SIGKILL)
            job.wait(10)
            assert count_lines(output) < NUM_GOOD
        assert start(tmp_path, cluster).wait(60) == 0, (tmp_path / "batch.log").read_text()
        check_records([json.loads(line) for line in output.read_bytes().splitlines()], cluster)


def check_records(records: list[dict[str, Any]], cluster: Cluster) -> None:
    codes = [(record["custom_id"], record["error"]["code"]) for record in records if record["error"]]
    assert sorted(codes, key=str) == sorted(
        [(None, "invalid_json_line"), ("good-0", "duplicate_custom_id"), ("elsewhere", "invalid_url")], key=str
    )
    answers = {record["custom_id"]: record["response"] for record in records if record["response"]}
    assert len(answers) == len(records) - len(codes)
    assert set(answers) == {f"good-{index}" for index in range(NUM_GOOD)} | set(REFUSED)
    for index in range(NUM_GOOD):
        answer = answers[f"good-{index}"]
        assert answer["status_code"] == 200
        assert answer["request_id"]
        assert answer["body"]["choices"][0]["message"]["content"] == "Hello" * 10
    with cluster.client() as client:
        for name, (fields, status, field) in REFUSED.items():
            assert answers[name]["status_code"] == status
            assert answers[name]["body"]["error"]["param"] == field
            direct = client.post("/v1/chat/completions", json=cluster.chat_body(**fields))
            assert (direct.status_code, direct.json()) == (status, answers[name]["body"])
