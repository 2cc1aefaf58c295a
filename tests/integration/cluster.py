"""A cluster that the `chorus serve` command started, seen from outside."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from chorus_cluster.cli.ports import free_ports
from chorus_workers.runner.fake import FakeModel

READY = "Ctrl-C stops it."
# <|channel|>final<|message|> and "Hello", as harmony's vocabulary numbers them.
HEADER = (200005, 17196, 200008)
HELLO = 13225
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
_ROOTS = ("cluster", "workers", "kernels", "protos", "vocabulary")
_REPOSITORY = Path(__file__).parents[2]


def echo_model(step_time_s: float = 0.01) -> str:
    """A fake engine that says "Hello" as often as the request allows, after a header of three tokens."""
    return FakeModel(step_time_s=step_time_s, prefix=HEADER, body=HELLO).to_config()


def chorus(*arguments: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts the command in a process group of its own, as a terminal would."""
    path = os.pathsep.join([*(str(_REPOSITORY / root) for root in _ROOTS), os.environ.get("PYTHONPATH", "")])
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "chorus_cluster.cli", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.1)


@dataclass
class Cluster:
    url: str
    grpc_address: str
    ray_metrics_url: str
    process: subprocess.Popen[bytes]
    log: Path
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    def chat_body(self, **fields: Any) -> dict[str, Any]:
        return {"model": "test", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, **fields}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.grpc_address)

    def samples(self, name: str, url: str | None = None, **labels: str) -> dict[str, float]:
        """A metric's values, summed for each replica."""
        page = httpx.get(url or f"{self.url}/metrics", timeout=10, trust_env=False)
        page.raise_for_status()
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(page.text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    replica = sample.labels.get("replica", "")
                    values[replica] = values.get(replica, 0.0) + sample.value
        return values

    def total(self, name: str, url: str | None = None, **labels: str) -> float:
        return sum(self.samples(name, url, **labels).values())

    def processes(self) -> list[psutil.Process]:
        """Every process that the command has below it now."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self._seen |= {child.pid: child for child in children}
        return children

    def workers(self) -> dict[str, psutil.Process]:
        """The processes of the worker replicas, known by the logs that they write."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                for file in process.open_files():
                    if match := re.search(r"Worker_(\w+)\.log", file.path):
                        found[match[1]] = process
        return found

    def engines(self) -> dict[int, psutil.Process]:
        """The engines' processes, by their workers' process ids."""
        found = {}
        for worker in self.workers().values():
            with contextlib.suppress(psutil.Error):
                for child in worker.children():
                    if "chorus_workers.engine.process" in child.cmdline():
                        found[worker.pid] = child
        return found

    def running_worker(self) -> psutil.Process:
        """The process of the worker that has the only request: its engine computes, the others sleep.

        (Metrics would say it too, but up to a second late.)
        """
        busiest = 0

        def one_is_busy() -> bool:
            nonlocal busiest
            engines = self.engines()
            before = {pid: sum(engine.cpu_times()[:2]) for pid, engine in engines.items()}
            time.sleep(0.1)
            used = {pid: sum(engine.cpu_times()[:2]) - before[pid] for pid, engine in engines.items()}
            busiest = max(used, key=lambda pid: used[pid])
            return used[busiest] >= 0.02

        wait_until(one_is_busy, 10, "one engine computes")
        return psutil.Process(busiest)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole process group."""
        self.processes()
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for_exit(self) -> int:
        return self.process.wait(_STOP_TIMEOUT_S)

    def survivors(self) -> list[str]:
        """The command lines of processes that outlived the command."""
        _, alive = psutil.wait_procs(self._seen.values(), timeout=1)
        lines = []
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(f"{process.pid} {' '.join(process.cmdline())}")
        return lines


@contextlib.contextmanager
def running(folder: Path, settings: dict[str, Any], **environment: str) -> Iterator[Cluster]:
    """Starts `chorus serve` with these settings on free ports; at the end it must stop and leave nothing."""
    http_port, grpc_port, metrics_port = free_ports(3)
    config = {
        **settings,
        "http": {"port": http_port},
        "grpc": {"port": grpc_port},
        "ray": {"metrics_port": metrics_port},
    }
    file = folder / "chorus.yaml"
    file.write_text(yaml.safe_dump(config))
    log = folder / "chorus.log"
    process = chorus("serve", "--config", str(file), log=log, **environment)
    cluster = Cluster(
        f"http://127.0.0.1:{http_port}",
        f"127.0.0.1:{grpc_port}",
        f"http://127.0.0.1:{metrics_port}/metrics",
        process,
        log,
    )
    try:
        wait_until(lambda: READY in log.read_text() or process.poll() is not None, _START_TIMEOUT_S, "chorus serve")
        assert process.poll() is None, log.read_text()
        cluster.processes()
        yield cluster
    finally:
        if process.poll() is None:
            cluster.interrupt()
            cluster.wait_for_exit()
        survivors = cluster.survivors()
    assert process.returncode == 0, log.read_text()
    assert survivors == []
