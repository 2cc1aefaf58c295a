"""Two workers of two shards each: a lost shard takes its worker along, and nobody's answer."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.integration.cluster import Cluster, running, wait_until

pytestmark = pytest.mark.slow

NUM_TOKENS = 400


@pytest.fixture(scope="module")
def sharded_cluster(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Cluster]:
    settings = {
        "model": {"path": str(checkpoint), "name": "test"},
        "gateway": {"header_guard": False},
        "workers": {"replicas": 2, "shards": 2, "num_cpus": 0.5, "num_threads": 1, "max_model_len": 4096},
    }
    with running(tmp_path_factory.mktemp("sharded"), settings) as cluster:
        yield cluster


def followers(cluster: Cluster) -> list[psutil.Process]:
    found = []
    for process in cluster.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::Follower"):
                found.append(process)
    return found


def is_whole(cluster: Cluster) -> bool:
    return len(followers(cluster)) == 2 and set(cluster.workers()) == set(cluster.samples("chorus_requests_running"))


class Stream(threading.Thread):
    """A client that reads one answer to its end."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self.text = ""
        self.num_tokens = 0
        self.start()

    def run(self) -> None:
        body = self._cluster.chat_body(
            max_completion_tokens=NUM_TOKENS, stream=True, stream_options={"include_usage": True}
        )
        with (
            self._cluster.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            for line in response.iter_lines():
                if not line or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                self.num_tokens = (event.get("usage") or {}).get("completion_tokens", 0)
                for choice in event.get("choices", []):
                    self.text += choice["delta"].get("content") or ""


def test_a_lost_shard_restarts_its_group_and_every_stream_goes_on(sharded_cluster: Cluster) -> None:
    cluster = sharded_cluster
    wait_until(lambda: is_whole(cluster), 30, "two workers of two shards")
    undisturbed = Stream(cluster)
    undisturbed.join(60)
    assert undisturbed.num_tokens == NUM_TOKENS and len(undisturbed.text) > NUM_TOKENS
    retries = cluster.total("chorus_gateway_engine_retries_total")
    streams = [Stream(cluster), Stream(cluster)]

    def one_on_each() -> bool:
        return sorted(cluster.samples("chorus_requests_running").values()) == [1.0, 1.0]

    wait_until(one_on_each, 10, "a stream on each worker")
    lost = followers(cluster)[0]
    lost.send_signal(signal.SIGKILL)
    for stream in streams:
        stream.join(60)
    assert [stream.text for stream in streams] == [undisturbed.text] * 2
    assert [stream.num_tokens for stream in streams] == [NUM_TOKENS] * 2
    # The stream of the worker that lost its shard moved, the other one didn't.
    # (Pages are pushed once a second.)
    wait_until(lambda: cluster.total("chorus_gateway_engine_retries_total") > retries, 5, "the move is counted")
    assert cluster.total("chorus_gateway_engine_retries_total") == retries + 1
    wait_until(lambda: is_whole(cluster), 30, "a new group in place of the broken one")
    again = Stream(cluster)
    again.join(60)
    assert again.text == undisturbed.text


def test_a_killed_worker_takes_its_followers_along(sharded_cluster: Cluster) -> None:
    cluster = sharded_cluster
    wait_until(lambda: is_whole(cluster), 30, "two workers of two shards")
    before = {process.pid for process in followers(cluster)}
    killed = next(iter(cluster.workers().values()))
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: len(before & {process.pid for process in followers(cluster)}) == 1, 10, "its follower's end")
    wait_until(lambda: is_whole(cluster), 30, "a new group in place of the killed one")
    assert len(before & {process.pid for process in followers(cluster)}) == 1
