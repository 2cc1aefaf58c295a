"""Connections of clients that are slow, and what the kernel knows of connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

# Of the timers in /proc/net/tcp.
KEEPALIVE = 2


@contextlib.asynccontextmanager
async def narrow_connection(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection with small buffers on our side, so that the server soon feels it when nothing is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**10)
    try:
        yield reader, writer
    finally:
        # Not close(), which would wait until all is written that nobody may read any more.
        writer.transport.abort()
        await asyncio.sleep(0)


def keepalive_timers(local_port: int, remote_port: int) -> list[int]:
    """What the kernel waits for on a connection of this machine with itself, seen from the local side."""
    timers = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer = line.split()[:6]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (local_port, remote_port):
            timers.append(int(timer.partition(":")[0], 16))
    return timers
