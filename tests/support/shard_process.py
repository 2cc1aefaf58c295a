"""Shards of a group in processes of their own: `python -m tests.support.shard_process RANK SIZE ADDRESS FOLDER`.

Shard 0 says "ready" once the group stands, and then does nothing until it is killed.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from chorus_workers.runner.config import RunnerConfig
from chorus_workers.runner.factory import create_runner, run_follower


def shard_config(folder: Path, num_shards: int, address: str | None = None) -> RunnerConfig:
    return RunnerConfig(
        str(folder),
        max_model_len=500,
        block_size=7,
        num_blocks=200,
        num_slots=5,
        max_batched_tokens=512,
        num_shards=num_shards,
        num_threads=1,
        shard_address=address,
    )


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def spawn_shard(rank: int, size: int, address: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.shard_process", str(rank), str(size), address, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    rank, size, address, folder = sys.argv[1:]
    config = shard_config(Path(folder), int(size), address)
    if int(rank):
        run_follower(int(rank), int(size), address, config)
    else:
        runner = create_runner(config)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.pause()
