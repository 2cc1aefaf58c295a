"""A Ray cluster of our own on this machine, that leaves nothing behind.

It gets a folder and a secret of its own, and listens for other machines only where the configuration says so; Ray's
files, HAProxy's files and logs are all in that folder, which is removed at the end (kept, if the start failed).
"""

import contextlib
import ctypes
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from chorus_cluster.cli.haproxy import find_haproxy, write_launcher
from chorus_cluster.cli.ports import free_ports, free_range
from chorus_cluster.config import ClusterConfig, ConfigError
from chorus_cluster.resolve import gateway_replicas

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 100 * 2**20
_EXIT_TIMEOUT_S = 5.0
# How much longer than a gateway HAProxy waits for a client.
_PROXY_PATIENCE_S = 10
_EXIT_POLL_S = 0.2
_PR_SET_CHILD_SUBREAPER = 36
_CONNECT_TIMEOUT_S = 5.0
# HAProxy takes no longer path of a socket. Serve's are below a folder with a node's id of 56 digits.
_MAX_SOCKET_PATH = 97
_HAPROXY_FOLDER = "ha"
_LONGEST_SOCKET = f"{_HAPROXY_FOLDER}/{'0' * 56}/metrics.sock"
# HAProxy's pages of its own and the proxy that it falls back on: by default fixed ports, that two clusters on one
# machine would fight for.
_PORT_VARIABLES = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
# The gateways' own ports, behind HAProxy. Several gRPC servers may listen on one port, each for a part of its calls:
# two clusters on one machine, both with Serve's own range, would answer one another's.
_INGRESS_PORTS = "RAY_SERVE_DIRECT_INGRESS_{bound}_{kind}_PORT"
_NUM_INGRESS_PORTS = 256
# gRPC's event engine hands each message from thread to thread: a fifth of a gateway's CPU, an eighth of a worker's
# (docs/performance.md). Without these two, gRPC polls as it did for years; a release that has dropped them says so in
# its log, and takes no notice.
_GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener"


class StartError(Exception):
    """The cluster can't start; the message is for the user."""


class LocalRay:
    """A context in which Ray runs and this process is connected to it. Must be entered before `ray` is imported."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._folder = Path()

    @property
    def folder(self) -> Path:
        """What is in it goes when the cluster does."""
        return self._folder

    @property
    def logs(self) -> str:
        """Where to look when something fails."""
        return str(self._folder / "session_latest" / "logs")

    def __enter__(self) -> Self:
        check_ports(self._config)
        binary = required_haproxy(self._config)
        adopt_orphans()
        self._folder = make_folder()
        os.environ.update(ray_environment(self._config, self._folder))
        if binary is not None:
            launcher = self._folder / _HAPROXY_FOLDER / "bin" / "haproxy"
            write_launcher(launcher, binary)
            os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(launcher)
        try:
            import ray

            ray.init(
                address="local",
                num_cpus=self._config.ray.num_cpus or required_cpus(self._config),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(self._folder),
                _metrics_export_port=self._config.ray.metrics_port,
            )
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if error is None or isinstance(error, KeyboardInterrupt | ConfigError):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        import ray

        # From here on nothing waits for anyone: a signal could only leave processes behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        ray.shutdown()
        end_children(_EXIT_TIMEOUT_S)


def make_folder() -> Path:
    """A new folder for a cluster's files: below the system's temporary folder, or /tmp if that one's path is long."""
    folder = Path(tempfile.mkdtemp(prefix="chorus-"))
    if len(str(folder / _LONGEST_SOCKET)) > _MAX_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="chorus-", dir="/tmp"))
    return folder


def adopt_orphans() -> None:
    """Makes processes below this one its children when their parents end first, as they may when Ray ends.

    Only Linux can do that. Elsewhere such a process has to notice by itself that it is alone.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_children(patience_s: float) -> None:
    """Waits for all processes below this one to end; after `patience_s`, ends them."""
    this = psutil.Process()
    end = time.monotonic() + patience_s
    # Those that are adopted meanwhile are seen in the next turn.
    while children := this.children(recursive=True):
        if time.monotonic() >= end:
            for child in children:
                logger.info("Ending process %d, which outlived Ray", child.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        psutil.wait_procs(children, timeout=_EXIT_POLL_S)


class JoinedRay:
    """A context in which this process is connected to a Ray cluster that others run. Its environment is theirs."""

    def __init__(self, address: str) -> None:
        self._address = address

    @property
    def logs(self) -> str:
        return "on the cluster's nodes, by default in /tmp/ray/session_latest/logs"

    def __enter__(self) -> Self:
        _check_reachable(self._address)
        import ray

        try:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise StartError(f"ray.address: no cluster answers at {self._address}: {error}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()


def ray_environment(config: ClusterConfig, folder: Path) -> dict[str, str]:
    """The environment variables that make Ray and Serve run as the configuration says."""
    haproxy = folder / _HAPROXY_FOLDER
    values = {
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(config.data_plane.haproxy)),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": str(int(config.data_plane.throughput_optimized)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        # To clients that don't read or send on; ours ends their requests before.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(config.gateway.client_timeout_s) + _PROXY_PATIENCE_S),
        # These wait for load balancers elsewhere to notice that a gateway goes. There are none.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.1",
        # A secret of this cluster's, so that no one else on the network can hand it work; and no file in the home
        # folder, which may not exist.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Said at every end: the controller, asked to shut down, died before it answered. So it should.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "ServeController.graceful_shutdown failed",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "GRPC_EXPERIMENTS": os.environ.get("GRPC_EXPERIMENTS", _GRPC_EXPERIMENTS),
    }
    values.update(zip(_PORT_VARIABLES, map(str, free_ports(len(_PORT_VARIABLES))), strict=True))
    if (ports := free_range(2 * _NUM_INGRESS_PORTS)) is not None:
        for kind, own in (("HTTP", ports[:_NUM_INGRESS_PORTS]), ("GRPC", ports[_NUM_INGRESS_PORTS:])):
            values[_INGRESS_PORTS.format(bound="MIN", kind=kind)] = str(own[0])
            values[_INGRESS_PORTS.format(bound="MAX", kind=kind)] = str(own[-1])
    return values


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def required_cpus(config: ClusterConfig) -> int:
    """CPUs that the deployments reserve, rounded up. Ray starts as many processes ahead, so not more than needed."""
    # The most there may be: Ray is what will say whether there is a GPU.
    gateways = gateway_replicas(config.app, "triton", usable_cpus()) * config.gateway.num_cpus
    workers = config.workers.replicas * config.workers.shards * config.workers.num_cpus
    return max(1, -int(-(gateways + workers) // 1))


def required_haproxy(config: ClusterConfig) -> str | None:
    """The binary that the configuration needs, if it needs one. Errors: StartError if there is none.

    Serve would report a running application behind a proxy that never comes up.
    """
    if not config.data_plane.haproxy:
        return None
    binary = find_haproxy()
    if binary is None:
        raise StartError("data_plane.haproxy: there is no haproxy here; install one, or set this to false")
    return binary


def check_ports(config: ClusterConfig) -> None:
    """Errors: StartError if another process has one of the configured ports, or two of ours would."""
    ports = {"http.port": (config.http.host, config.http.port), "grpc.port": (config.http.host, config.grpc.port)}
    if config.workers.grpc_port:
        if config.workers.replicas > 1:
            raise StartError(
                f"workers.grpc_port is {config.workers.grpc_port}, but {config.workers.replicas} workers run on this "
                "machine; with 0 each takes a free one"
            )
        ports["workers.grpc_port"] = (config.workers.grpc_host, config.workers.grpc_port)
    names: dict[int, str] = {}
    for name, (host, port) in ports.items():
        if port in names:
            # HAProxy would listen twice, and hand each connection to one of the two protocols at random; a worker
            # would start again and again.
            raise StartError(f"{names[port]} and {name} are both {port}; choose another for one of them")
        names[port] = name
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise StartError(f"{name}: can't listen on {host}:{port} ({error.strerror}); choose another") from None


def _check_reachable(address: str) -> None:
    """Ray would try for more than a minute. Addresses of other forms ("auto", a Ray client's) are left to it."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StartError(f"ray.address: nothing answers at {address} ({error.strerror or error})") from None
