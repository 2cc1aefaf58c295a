"""The shards of a worker's engine beyond the first: actors in the replica's placement group.

Bundle 0 of the group is the replica, whose engine process is shard 0; bundle i holds shard i. The actors belong to the
replica: Ray ends them with it. If one of them ends, the whole group is of no use, and the engine ends too; its replica
goes the same way, and Serve starts everything anew.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from chorus_workers.config import WorkerConfig
from chorus_workers.engine.client import EngineStartError

logger = logging.getLogger(__name__)


T = TypeVar("T")

# How long a follower may take to say why the start failed, once shard 0 has noticed.
_REASON_TIMEOUT_S = 1.0


class Follower:
    """The actor of one shard."""

    def run(self, rank: int, config: WorkerConfig) -> None:
        """Lasts as long as the group. Errors: CheckpointError, ValueError, RunnerError."""
        # Here, so that the replica, which imports this file, does without PyTorch.
        from chorus_workers.runner.factory import run_follower, runner_config

        assert config.shard_address is not None
        run_follower(rank, config.num_shards, config.shard_address, runner_config(config))


class ShardGroup:
    """The followers of one engine. All methods belong to the event loop that started it."""

    def __init__(self, config: WorkerConfig, actors: dict[int, Any]) -> None:
        # What the engine process is to be started with.
        self.config = config
        self._actors = actors
        loop = asyncio.get_running_loop()
        self._death: asyncio.Future[str] = loop.create_future()
        self._watching = [
            loop.create_task(self._watch(rank, actor.run.remote(rank, config))) for rank, actor in actors.items()
        ]

    @classmethod
    def start(cls, config: WorkerConfig) -> "ShardGroup":
        """Starts a follower in each bundle but the replica's own. They wait for the engine process.

        Errors: EngineStartError, outside of a placement group with a bundle for each shard.
        """
        group = ray.util.get_current_placement_group()
        num_bundles = len(group.bundle_specs) if group else 0
        if group is None or num_bundles < config.num_shards:
            raise EngineStartError(
                f"num_shards is {config.num_shards}: the replica needs a placement group of as many bundles, "
                f"not {num_bundles}"
            )
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        address = f"{host}:{_free_port()}"
        actors = {rank: _start_actor(group, rank) for rank in range(1, config.num_shards)}
        return cls(replace(config, shard_address=address), actors)

    def on_death(self, callback: Callable[[str], None]) -> None:
        """Calls back once, with the reason, when a follower ends before `close`."""

        def call_back(death: "asyncio.Future[str]") -> None:
            if not death.cancelled():
                callback(death.result())

        self._death.add_done_callback(call_back)

    async def watch_start(self, starting: "asyncio.Task[T]") -> T:
        """The result of starting the engine process, unless a follower ends first.

        Errors: EngineStartError, with what every side has to say.
        """
        await asyncio.wait((starting, self._death), return_when=asyncio.FIRST_COMPLETED)
        if not self._death.done():
            if starting.cancelled() or starting.exception() is None:
                return starting.result()
            await asyncio.wait((self._death,), timeout=_REASON_TIMEOUT_S)
        starting.cancel()
        reasons = [str(e) for e in await asyncio.gather(starting, return_exceptions=True) if isinstance(e, Exception)]
        raise EngineStartError("; ".join([*reasons, *([self._death.result()] if self._death.done() else [])]))

    def stop_watching(self) -> None:
        """From now on followers may end: they do when the engine closes."""
        self._death.cancel()
        for task in self._watching:
            task.cancel()

    def close(self) -> None:
        """Ends the actors."""
        self.stop_watching()
        for actor in self._actors.values():
            ray.kill(actor)

    async def _watch(self, rank: int, running: "ray.ObjectRef[None]") -> None:
        try:
            await running
            reason = f"shard {rank} ended"
        except RayTaskError as error:
            reason = f"shard {rank} failed: {type(error.cause).__name__}: {error.cause}"
        except RayError as error:
            reason = f"shard {rank} died: {type(error).__name__}"
        if not self._death.done():
            logger.error("%s", reason)
            self._death.set_result(reason)


def _start_actor(group: PlacementGroup, rank: int) -> Any:
    """A follower that takes all of its bundle."""
    resources = dict(group.bundle_specs[rank])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    options = {
        "num_cpus": resources.pop("CPU", 0),
        "num_gpus": resources.pop("GPU", 0),
        "resources": resources,
        "scheduling_strategy": strategy,
    }
    return ray.remote(Follower).options(**options).remote()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port
