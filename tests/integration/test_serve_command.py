"""The command itself: it drains on Ctrl-C, and says at once what is wrong with a checkpoint."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from google.rpc.status_pb2 import Status
from tests.integration.cluster import chorus, echo_model, running, wait_until

from chorus_cluster.auth.keys import new_key
from chorus_cluster.cli.ports import free_ports
from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

pytestmark = pytest.mark.slow


def test_ctrl_c_lets_an_answer_finish_and_leaves_no_process(tmp_path: Path) -> None:
    """Also shows that Serve's own proxy serves, with HAProxy and the throughput flags switched off."""
    settings = {
        "model": {"path": echo_model(), "name": "test"},
        "workers": {"num_cpus": 0.5},
        "data_plane": {"haproxy": False, "throughput_optimized": False},
    }
    answers: list[str] = []
    with running(tmp_path, settings, HOME="") as cluster:
        assert not any(process.name() == "haproxy" for process in cluster.processes())

        def ask() -> None:
            body = cluster.chat_body(max_completion_tokens=603)
            answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
            answers.append(answer.json()["choices"][0]["message"]["content"])

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: cluster.total("chorus_requests_running") == 1, 10, "the engine runs the request")
        cluster.interrupt()
        assert cluster.wait_for_exit() == 0
        asking.join(10)
    # That nothing outlived the command, `running` has checked.
    assert answers == ["Hello" * 600]


def test_an_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    http_port, grpc_port = free_ports(2)
    ports = ("--http-port", str(http_port), "--grpc-port", str(grpc_port))
    process = chorus("serve", *ports, log=tmp_path / "chorus.log")
    handle = psutil.Process(process.pid)
    seen: dict[int, psutil.Process] = {}

    def ray_is_starting() -> bool:
        seen.update({child.pid: child for child in handle.children(recursive=True)})
        return any("raylet" in child.name() for child in seen.values() if child.is_running())

    wait_until(ray_is_starting, 30, "Ray starts")
    os.killpg(process.pid, signal.SIGINT)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen |= {child.pid: child for child in handle.children(recursive=True)}
        time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "chorus.log").read_text()
    assert psutil.wait_procs(seen.values(), timeout=5)[1] == []


def test_with_api_keys_only_health_is_open(tmp_path: Path) -> None:
    """Through HAProxy and Serve, over both protocols; and a key that is taken away is gone, without a restart."""
    keys = tmp_path / "keys.yaml"
    key, entry = new_key("test")
    keys.write_text(f"keys:\n{entry}")
    settings = {
        "model": {"path": echo_model(), "name": "test"},
        "workers": {"num_cpus": 0.5},
        "auth": {"keys_file": str(keys)},
    }
    request = chat_pb2.ChatCompletionRequest(
        model="test",
        messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hello")],
        max_completion_tokens=5,
    )
    with running(tmp_path, settings, CHORUS_API_KEY=key) as cluster:
        said = cluster.log.read_text()
        assert f"Keys  {keys}" in said and "and answered: Hello" in said
        headers = {"authorization": f"Bearer {key}"}
        body = cluster.chat_body(max_completion_tokens=5)
        with cluster.client() as client, cluster.channel() as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)

            def answers(headers: dict[str, str]) -> tuple[int, grpc.StatusCode]:
                status = client.post("/v1/chat/completions", json=body, headers=headers).status_code
                try:
                    stub.CreateChatCompletion(request, timeout=30, metadata=tuple(headers.items()))
                except grpc.RpcError as error:
                    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
                    assert Status.FromString(details).message == error.details()
                    return status, error.code()
                return status, grpc.StatusCode.OK

            assert client.get("/health").status_code == 200
            assert {client.get(path).status_code for path in ("/metrics", "/docs", "/v1/models", "/x")} == {401}
            assert answers({}) == (401, grpc.StatusCode.UNAUTHENTICATED)
            assert answers(headers) == (200, grpc.StatusCode.OK)
            assert client.get("/metrics", headers=headers).status_code == 403
            keys.write_text("keys: []")
            wait_until(lambda: answers(headers)[0] == 401, 5, "the key is gone")
            assert answers(headers) == (401, grpc.StatusCode.UNAUTHENTICATED)


def test_a_bad_checkpoint_is_one_clear_message(tmp_path: Path, checkpoint: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[: len(content) // 2] if file.name == "model.safetensors" else content)
    http_port, grpc_port = free_ports(2)
    log = tmp_path / "chorus.log"
    ports = ("--http-port", str(http_port), "--grpc-port", str(grpc_port))
    process = chorus("serve", "--model", str(broken), *ports, log=log)
    handle = psutil.Process(process.pid)
    seen: dict[int, psutil.Process] = {}
    while process.poll() is None:
        seen |= {child.pid: child for child in handle.children(recursive=True)}
        time.sleep(0.2)
    last = log.read_text().splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith("chorus serve: worker: CheckpointError: ")
    assert "model.safetensors" in last
    assert "Traceback" not in log.read_text()
    assert psutil.wait_procs(seen.values(), timeout=5)[1] == []
