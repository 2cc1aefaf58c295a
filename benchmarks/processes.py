"""Whose CPU time and memory it is: the processes of a running cluster, by role."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

# Ray names its processes after the actor and, while one runs, the method: "ray::ServeReplica:chorus:Worker.generate".
_ROLES = (
    ("gateway", re.compile(r"^ray::ServeReplica:[^:]*:Gateway\b")),
    ("worker", re.compile(r"^ray::ServeReplica:[^:]*:Worker\b")),
    ("engine", re.compile(r"chorus_workers\.engine\.process")),
    ("proxy", re.compile(r"haproxy|^ray::(ProxyActor|HAProxy)")),
)
ROLES = ("gateway", "proxy", "worker", "engine", "ray")


def role_of(command_line: str) -> str:
    """gateway, proxy (HAProxy and Serve's), worker (the replica), engine (its process), or ray for all the rest."""
    return next((role for role, pattern in _ROLES if pattern.search(command_line)), "ray")


@dataclass(frozen=True, slots=True)
class Process:
    process: psutil.Process
    role: str


def find_cluster(root_pid: int) -> list[Process]:
    """The process of `chorus serve` and all below it."""
    root = psutil.Process(root_pid)
    found = []
    for process in [root, *root.children(recursive=True)]:
        try:
            found.append(Process(process, role_of(" ".join(process.cmdline()))))
        except psutil.NoSuchProcess:
            continue
    return found


def cpu_seconds(processes: Iterable[Process]) -> dict[str, float]:
    """User and system time by role, to the kernel's clock tick (10 ms)."""
    total = dict.fromkeys(ROLES, 0.0)
    for process in processes:
        try:
            times = process.process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total[process.role] += times.user + times.system
    return total


def memory_bytes(processes: Iterable[Process]) -> dict[str, int]:
    """Proportional set size by role: shared pages are counted once, in parts."""
    total = dict.fromkeys(ROLES, 0)
    for process in processes:
        try:
            total[process.role] += process.process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total
