"""How a worker follows its shards: what it makes of their failures, before and after the engine has started."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from chorus_workers.config import WorkerConfig
from chorus_workers.engine.client import EngineStartError
from chorus_workers.shards import ShardGroup

CONFIG = WorkerConfig(model="somewhere", num_shards=3, shard_address="127.0.0.1:1")


class Followers:
    """Stand-ins for actors: a future for each, which its run is."""

    def __init__(self) -> None:
        self.runs: dict[int, asyncio.Future[None]] = {}
        self.killed: list[int] = []

    def actor(self, rank: int) -> Any:
        def remote(rank: int, config: WorkerConfig) -> "asyncio.Future[None]":
            self.runs[rank] = asyncio.get_running_loop().create_future()
            return self.runs[rank]

        return SimpleNamespace(rank=rank, run=SimpleNamespace(remote=remote))


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> Followers:
    followers = Followers()
    monkeypatch.setattr(ray, "kill", lambda actor: followers.killed.append(actor.rank))
    return followers


def group_of(followers: Followers) -> ShardGroup:
    return ShardGroup(CONFIG, {rank: followers.actor(rank) for rank in (1, 2)})


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "Traceback", cause)


async def fails(error: Exception, delay_s: float = 0.0) -> str:
    await asyncio.sleep(delay_s)
    raise error


async def test_the_engine_starts(followers: Followers) -> None:
    group = group_of(followers)
    assert await group.watch_start(asyncio.create_task(asyncio.sleep(0.01, "engine"))) == "engine"
    group.close()
    assert followers.killed == [1, 2]


async def test_a_follower_that_fails_ends_the_start_and_says_why(followers: Followers) -> None:
    group = group_of(followers)
    starting = asyncio.create_task(asyncio.sleep(60, "engine"))
    asyncio.get_running_loop().call_later(0.01, followers.runs[2].set_exception, task_error(ValueError("no such file")))
    with pytest.raises(EngineStartError, match="^shard 2 failed: ValueError: no such file$"):
        await group.watch_start(starting)
    assert starting.cancelled()


async def test_when_the_engine_fails_first_the_follower_is_heard_too(followers: Followers) -> None:
    group = group_of(followers)
    asyncio.get_running_loop().call_later(0.05, followers.runs[1].set_exception, ActorDiedError())
    with pytest.raises(EngineStartError, match="^lost another shard; shard 1 died: ActorDiedError$"):
        await group.watch_start(asyncio.create_task(fails(EngineStartError("lost another shard"))))


async def test_the_engines_own_failure_needs_no_follower(followers: Followers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chorus_workers.shards._REASON_TIMEOUT_S", 0.01)
    group = group_of(followers)
    with pytest.raises(EngineStartError, match="^bad checkpoint$"):
        await group.watch_start(asyncio.create_task(fails(EngineStartError("bad checkpoint"))))
    group.close()


async def test_a_death_is_told_once(followers: Followers) -> None:
    group = group_of(followers)
    reasons: list[str] = []
    group.on_death(reasons.append)
    await asyncio.sleep(0)
    followers.runs[1].set_exception(ActorDiedError())
    followers.runs[2].set_result(None)
    await asyncio.sleep(0.01)
    assert reasons == ["shard 1 died: ActorDiedError"]


async def test_a_group_that_closes_mourns_nobody(followers: Followers) -> None:
    group = group_of(followers)
    reasons: list[str] = []
    group.on_death(reasons.append)
    await asyncio.sleep(0)
    group.stop_watching()
    await asyncio.sleep(0.01)
    assert all(run.cancelled() for run in followers.runs.values())
    assert reasons == [] and followers.killed == []
    group.close()
    assert followers.killed == [1, 2]


async def test_shards_without_a_placement_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    with pytest.raises(EngineStartError, match="num_shards is 3: the replica needs a placement group of as many"):
        ShardGroup.start(CONFIG)
    small = SimpleNamespace(bundle_specs=[{"CPU": 1.0}] * 2)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: small)
    with pytest.raises(EngineStartError, match="not 2"):
        ShardGroup.start(CONFIG)
