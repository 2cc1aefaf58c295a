"""Ports for servers that will be started soon."""

import contextlib
import random
import socket
from pathlib import Path

# Below it are ports that servers are known by, and those that Ray takes unless told otherwise.
_LOWEST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on.

    They lie outside the range that the system takes connections' own ports from, unless there is nothing outside: of
    these, any connection could take one before it is used.
    """
    candidates = list(range(_LOWEST, _first_ephemeral()))
    random.SystemRandom().shuffle(candidates)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in [*candidates, *[0] * count]:
            if len(found) == count:
                break
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("", port))
                found.append(int(probe.getsockname()[1]))
        return found


def free_range(length: int) -> range | None:
    """So many ports in a row that nobody listens on, outside the range that connections' own ports are from.

    None: there are none.
    """
    starts = list(range(_LOWEST, _first_ephemeral() - length + 1, length))
    random.SystemRandom().shuffle(starts)
    return next((found for start in starts if _is_free(found := range(start, start + length))), None)


def _is_free(ports: range) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            for port in ports:
                stack.enter_context(socket.socket()).bind(("", port))
        except OSError:
            return False
    return True


def _first_ephemeral() -> int:
    """Where there is no such file, Linux' own choice, which is below that of others."""
    try:
        return int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    except FileNotFoundError:
        return 32_768
