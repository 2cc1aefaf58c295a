"""The commands, as far as they go without a cluster."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from chorus_cluster.auth.keys import Scope, parse_keys
from chorus_cluster.cli import chat, local_ray
from chorus_cluster.cli.deploy import reason_of
from chorus_cluster.cli.local_ray import StartError, check_ports, ray_environment, required_cpus
from chorus_cluster.cli.main import app
from chorus_cluster.cli.ports import free_ports
from chorus_cluster.config import ConfigError, load

runner = CliRunner()


def test_the_command_lists_what_it_can_do() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("serve", "chat", "batch", "new-key", "version"):
        assert command in result.output


def test_a_bad_configuration_ends_at_once_with_one_line(tmp_path: Path) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text("workers: {replica: 2}\n")
    result = runner.invoke(app, ["serve", "--config", str(file)])
    assert result.exit_code == 1
    expected = f"chorus serve: {file}: workers.replica: unknown key; did you mean 'replicas'?"
    assert result.output.strip() == expected


def test_a_key_file_that_can_t_be_used_ends_a_start_at_once(tmp_path: Path) -> None:
    file, keys = tmp_path / "chorus.yaml", tmp_path / "keys.yaml"
    file.write_text(f"auth: {{keys_file: {keys}}}\n")
    result = runner.invoke(app, ["serve", "--config", str(file)])
    assert result.exit_code == 1
    assert result.output.strip() == f"chorus serve: can't read {keys}: No such file or directory"
    keys.write_text("keys: 5")
    result = runner.invoke(app, ["serve", "--config", str(file)])
    assert result.output.startswith(f"chorus serve: {keys}: keys: ")


def test_a_store_that_can_t_be_used_ends_a_start_at_once(tmp_path: Path) -> None:
    file, secret = tmp_path / "chorus.yaml", tmp_path / "url"
    for settings, message in (
        ("url: 'mysql://user:secret@host/db'", "store.url: must begin with sqlite:/// or postgresql://"),
        (f"url_file: {secret}", f"store.url_file: can't read {secret}: No such file or directory"),
        (f"url: 'sqlite:////x', url_file: {secret}", "store: url and url_file are both set; choose one"),
    ):
        file.write_text(f"store: {{{settings}}}\n")
        result = runner.invoke(app, ["serve", "--config", str(file)])
        assert (result.exit_code, result.output.strip()) == (1, f"chorus serve: {message}")


def test_a_new_key_is_shown_once_beside_its_entry() -> None:
    result = runner.invoke(app, ["new-key", "ci", "--owner", "team-a", "--scope", "metrics", "--scope", "inference"])
    assert result.exit_code == 0
    key = result.output.split()[result.output.split().index("once:") + 1]
    found = parse_keys("keys:\n" + result.output[result.output.index("- id:") :]).find(key)
    assert found is not None
    assert (found.id, found.owner, found.scopes) == ("ci", "team-a", frozenset(Scope))
    assert runner.invoke(app, ["new-key", "a b"]).exit_code == 2


def test_a_flag_out_of_range_is_named() -> None:
    result = runner.invoke(app, ["serve", "--workers", "0"])
    assert result.exit_code == 1
    assert "workers.replicas: input should be greater than or equal to 1" in result.output


def test_a_port_that_is_taken_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"grpc\.port: can't listen on 127\.0\.0\.1:{port}"):
            check_ports(load(None, {"http.port": free_ports(1)[0], "grpc.port": port}))


def test_no_file_of_haproxy_lies_in_a_folder_that_other_clusters_share(tmp_path: Path) -> None:
    from ray.serve._private import constants

    shared = {name for name, value in vars(constants).items() if str(value).startswith("/tmp/haproxy-serve")}
    assert "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC" in shared
    ours = ray_environment(load(None, {}), tmp_path)
    assert {name: ours.get(name, "").startswith(f"{tmp_path}/") for name in shared} == dict.fromkeys(shared, True)


def test_a_cluster_s_folder_has_a_path_short_enough_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / ("deep" * 10)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    folder = local_ray.make_folder()
    folder.rmdir()
    assert list(far.iterdir()) == []
    node = "f" * 56
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        path = Path(ray_environment(load(None, {}), folder)[name])
        # Where Serve puts it: haproxy.py's _per_node.
        assert len(str(path.parent / node / path.name)) <= 97


def test_http_and_grpc_need_a_port_each() -> None:
    port = free_ports(1)[0]
    with pytest.raises(StartError, match=f"http.port and grpc.port are both {port}"):
        check_ports(load(None, {"http.port": port, "grpc.port": port}))


def test_a_worker_s_fixed_port_is_for_one_worker_and_no_one_else() -> None:
    http, grpc = free_ports(2)
    ports = {"http.port": http, "grpc.port": grpc}
    check_ports(load(None, ports | {"workers.grpc_port": free_ports(1)[0]}))
    check_ports(load(None, ports | {"workers.grpc_port": 0, "workers.replicas": 2}))
    with pytest.raises(StartError, match=f"http.port and workers.grpc_port are both {http}"):
        check_ports(load(None, ports | {"workers.grpc_port": http}))
    with pytest.raises(StartError, match=r"workers\.grpc_port is 7001, but 2 workers run on this machine"):
        check_ports(load(None, ports | {"workers.grpc_port": 7001, "workers.replicas": 2}))


def test_an_absent_haproxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "find_haproxy", lambda: None)
    http, grpc = free_ports(2)
    config = load(None, {"http.port": http, "grpc.port": grpc})
    with pytest.raises(StartError, match=r"data_plane\.haproxy: there is no haproxy here"):
        local_ray.LocalRay(config).__enter__()
    assert local_ray.required_haproxy(load(None, {"data_plane.haproxy": False})) is None


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (None, False),
        (KeyboardInterrupt(), False),
        (ConfigError("a setting"), False),
        (StartError("a checkpoint"), True),
        (RuntimeError("Ray's own"), True),
    ],
)
def test_ray_s_logs_are_kept_where_something_failed(
    error: BaseException | None, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ray.LocalRay, "_end", lambda self: None)
    cluster = local_ray.LocalRay(load(None, {}))
    cluster._folder = tmp_path / "chorus-x"
    cluster._folder.mkdir()
    cluster.__exit__(type(error) if error is not None else None, error, None)
    assert cluster._folder.exists() is is_kept


def test_an_absent_ray_cluster_is_named_at_once() -> None:
    port = free_ports(1)[0]
    result = runner.invoke(app, ["serve", "--address", f"127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert f"ray.address: nothing answers at 127.0.0.1:{port}" in result.output


def test_ray_reserves_what_the_deployments_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert required_cpus(load(None, {})) == 2
    # Sixteen workers on GPUs could have as many gateways as there are fours of CPUs.
    monkeypatch.setattr(local_ray, "usable_cpus", lambda: 48)
    assert required_cpus(load(None, {"workers.replicas": 16})) == 18
    assert required_cpus(load(None, {"workers.replicas": 3, "workers.shards": 2, "gateway.replicas": 2})) == 7
    assert required_cpus(load(None, {"workers.num_cpus": 0.0, "gateway.num_cpus": 0.0})) == 1


def test_the_data_plane_s_switches_reach_serve(tmp_path: Path) -> None:
    on = ray_environment(load(None, {}), tmp_path)
    assert (on["RAY_SERVE_ENABLE_HA_PROXY"], on["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("1", "1")
    off = ray_environment(load(None, {"data_plane.haproxy": False, "data_plane.throughput_optimized": False}), tmp_path)
    assert (off["RAY_SERVE_ENABLE_HA_PROXY"], off["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("0", "0")
    # Each cluster has a secret of its own, and its files are in its folder.
    assert on["RAY_AUTH_TOKEN"] != off["RAY_AUTH_TOKEN"]
    assert on["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"].startswith(str(tmp_path))


def test_gateways_of_two_clusters_share_no_ports(tmp_path: Path) -> None:
    """Those of the first are in use when the second starts."""

    def ports(environment: dict[str, str], kind: str) -> range:
        first, last = (int(environment[f"RAY_SERVE_DIRECT_INGRESS_{bound}_{kind}_PORT"]) for bound in ("MIN", "MAX"))
        return range(first, last + 1)

    one = ray_environment(load(None, {}), tmp_path)
    http, grpc = ports(one, "HTTP"), ports(one, "GRPC")
    assert len(http) == len(grpc) > 100 and not {*http} & {*grpc}
    with socket.create_server(("::", grpc[0]), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=True):
        for _ in range(50):
            other = ray_environment(load(None, {}), tmp_path)
            assert grpc[0] not in {*ports(other, "HTTP"), *ports(other, "GRPC")}


def test_grpc_s_event_engine_is_off_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    ours = ray_environment(load(None, {}), tmp_path)["GRPC_EXPERIMENTS"]
    assert ours == "-event_engine_client,-event_engine_listener"
    monkeypatch.setenv("GRPC_EXPERIMENTS", "event_engine_client")
    assert ray_environment(load(None, {}), tmp_path)["GRPC_EXPERIMENTS"] == "event_engine_client"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "A replica failed to start with exception. Error:\n  File ...\n"
            "chorus_workers.engine.client.EngineStartError: CheckpointError: a.safetensors: tensor b\nis missing\n",
            "CheckpointError: a.safetensors: tensor b\nis missing",
        ),
        ("Error:\nTraceback\n  File\nRuntimeError: port 1 is taken\n", "RuntimeError: port 1 is taken"),
        ("", "it failed, and Serve does not say why"),
    ],
)
def test_the_reason_of_a_failed_start_is_its_last_exception(message: str, reason: str) -> None:
    assert reason_of(message) == reason


def sse(*events: object) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def delta(**fields: str) -> dict[str, object]:
    return {"choices": [{"delta": fields}]}


class Server:
    """Answers in the HTTP API's words, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, object]] = []

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self._handle), base_url="http://server")

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        self.bodies.append(json.loads(request.content))
        return self.answers.pop(0)


def recording_console() -> Console:
    return Console(record=True, width=200, highlight=False, soft_wrap=True)


def test_reasoning_is_set_apart_from_the_answer() -> None:
    events = sse(delta(role="assistant"), delta(reasoning="2+2 "), delta(reasoning="is 4"), delta(content="[b]4"))
    server, console = Server(httpx.Response(200, text=events)), recording_console()
    with server.client() as client:
        answer = chat.answer_one(client, {"model": "m"}, [{"role": "user", "content": "2+2?"}], console)
    assert answer == "[b]4"
    assert console.export_text() == "2+2 is 4\n\n[b]4\n"
    assert server.bodies[0]["stream"] is True


@pytest.mark.parametrize("text", ["root:x:0:0", "all:\n\tmake\n", "[b]", "a\r\nb", "x" * 300, " 日本 "])
def test_what_the_model_wrote_is_printed_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(httpx.Response(200, text=sse(delta(reasoning=text), delta(content=text))))
    with server.client() as client:
        chat.answer_one(client, {}, [], Console(highlight=False, soft_wrap=True))
    assert capsys.readouterr().out == f"{text}\n\n{text}\n"


def test_a_conversation_remembers_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one", "", "two"])

    def read(*_: object, **__: object) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    console = recording_console()
    monkeypatch.setattr(console, "input", read)
    server = Server(*(httpx.Response(200, text=sse(delta(content=text))) for text in ("eins", "zwei")))
    with server.client() as client:
        chat.converse(client, {"model": chat.first_model(client)}, console)
    assert [body["model"] for body in server.bodies] == ["first", "first"]
    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "eins"},
        {"role": "user", "content": "two"},
    ]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(429, json={"error": {"message": "All workers are busy."}}), "All workers are busy. (HTTP 429)"),
        (httpx.Response(502, text="Bad gateway\n"), "HTTP 502: Bad gateway"),
        (httpx.Response(200, text=sse({"error": {"message": "It broke."}})), "It broke."),
    ],
)
def test_a_refusal_is_told_in_the_server_s_words(response: httpx.Response, message: str) -> None:
    with Server(response).client() as client, pytest.raises(chat.ChatFailed) as caught:
        chat.answer_one(client, {}, [], recording_console())
    assert str(caught.value) == message


def test_an_absent_server_is_one_line() -> None:
    port = free_ports(1)[0]
    result = runner.invoke(app, ["chat", "Hello", "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"chorus chat: can't reach http://127.0.0.1:{port}: ")
    assert result.stdout == ""


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": []}', '{"data": [{}]}'])
def test_a_server_of_another_kind_is_one_line(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    client = httpx.Client(transport=transport, base_url="http://server")
    with client, pytest.raises(chat.ChatFailed, match="http://server lists no model"):
        chat.first_model(client)


def test_an_address_that_is_none_is_one_line() -> None:
    result = runner.invoke(app, ["chat", "Hello", "--url", "http://[::"])
    assert result.exit_code == 1
    assert result.output.startswith("chorus chat: can't reach http://[::: ")


def test_orphans_are_found_and_ended() -> None:
    """In a process of its own, since adopting can't be undone: a child leaves a grandchild behind."""
    code = """
import subprocess, sys, psutil
from chorus_cluster.cli.local_ray import adopt_orphans, end_children
adopt_orphans()
leave = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
orphan = int(subprocess.run([sys.executable, "-c", leave], stdout=subprocess.PIPE, check=True).stdout)
assert psutil.Process(orphan).ppid() == psutil.Process().pid
end_children(patience_s=0.1)
print(psutil.pid_exists(orphan))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=50)
    assert result.stdout.strip() == "False", result.stderr
