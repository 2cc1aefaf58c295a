"""A cluster of its own for a benchmark, started as users start it: `chorus serve`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """Addresses (host:port) of a running cluster, and the process that holds it."""

    http: str
    grpc: str
    pid: int
    start_s: float


@contextlib.contextmanager
def serve(config: dict[str, dict[str, object]], start_timeout_s: float = _START_TIMEOUT_S) -> Iterator[Server]:
    """Starts `chorus serve` with this configuration on free ports; when left, it has drained and ended."""
    http, grpc = free_ports(2)
    config = config | {"http": {"port": http}, "grpc": {"port": grpc}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        log = (Path(folder) / "serve.log").open("w+b")
        started_at = time.monotonic()
        main = "from chorus_cluster.cli import main; main()"
        command = [sys.executable, "-c", main, "serve", "--config", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{http}/health", log.name, start_timeout_s)
            yield Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process.pid, time.monotonic() - started_at)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                log.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    tail = Path(log).read_text(errors="replace")[-3000:]
    what = f"is not ready after {timeout_s:.0f} s" if process.poll() is None else "has ended"
    raise RuntimeError(f"chorus serve {what}. It said:\n{tail}")
