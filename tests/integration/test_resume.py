"""kill -9 in the middle of answers: the streams go on elsewhere, and at temperature 0 nobody can tell."""

import json
import signal
from collections.abc import Iterator

import httpx
import pytest
from tests.integration.cluster import Cluster, wait_until

from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

pytestmark = pytest.mark.slow

NUM_TOKENS = 1000


def stream_text(cluster: Cluster, client: httpx.Client) -> Iterator[str]:
    body = cluster.chat_body(max_completion_tokens=NUM_TOKENS, stream=True, stream_options={"include_usage": True})
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        usage = None
        for line in response.iter_lines():
            if not line or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""
    assert usage is not None and usage["completion_tokens"] == NUM_TOKENS


def kill_worker(cluster: Cluster) -> None:
    cluster.running_worker().send_signal(signal.SIGKILL)


def kill_engine(cluster: Cluster) -> None:
    """The engine has a process of its own, below the worker's."""
    cluster.engines()[cluster.running_worker().pid].send_signal(signal.SIGKILL)


def both_workers_are_idle(cluster: Cluster) -> bool:
    """Their pages too: the dead ones' are gone, the new ones' are there."""
    counts = cluster.samples("chorus_requests_running")
    return len(counts) == 2 and set(counts) == set(cluster.workers()) and not any(counts.values())


@pytest.fixture(scope="module")
def text(model_cluster: Cluster) -> str:
    """What the model says when nobody disturbs it."""
    with model_cluster.client() as client:
        text = "".join(stream_text(model_cluster, client))
    assert len(text) > NUM_TOKENS
    return text


@pytest.mark.parametrize("kill", [kill_worker, kill_engine])
def test_a_stream_over_http_survives_its_worker(model_cluster: Cluster, text: str, kill: object) -> None:
    assert callable(kill)
    wait_until(lambda: both_workers_are_idle(model_cluster), 30, "two workers")
    retries = model_cluster.total("chorus_gateway_engine_retries_total")
    pieces = []
    with model_cluster.client() as client:
        for number, piece in enumerate(stream_text(model_cluster, client)):
            pieces.append(piece)
            if number == 10:
                kill(model_cluster)
    assert "".join(pieces) == text
    assert model_cluster.total("chorus_gateway_engine_retries_total") > retries
    wait_until(lambda: both_workers_are_idle(model_cluster), 30, "a new worker in place of the dead one")


def test_a_stream_over_grpc_survives_its_worker(model_cluster: Cluster, text: str) -> None:
    wait_until(lambda: both_workers_are_idle(model_cluster), 30, "two workers")
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hello")
    request = chat_pb2.ChatCompletionRequest(
        model="test", messages=[message], temperature=0, max_completion_tokens=NUM_TOKENS
    )
    pieces = []
    with model_cluster.channel() as channel:
        for number, chunk in enumerate(
            chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(request, timeout=60)
        ):
            pieces += [delta.content for delta in chunk.deltas]
            if number == 10:
                kill_worker(model_cluster)
    assert "".join(pieces) == text


def test_a_stream_outlives_all_of_its_workers(model_cluster: Cluster, text: str) -> None:
    """There is no other worker to go on then: the stream waits for the new ones."""
    wait_until(lambda: both_workers_are_idle(model_cluster), 30, "two workers")
    pieces = []
    with model_cluster.client() as client:
        for number, piece in enumerate(stream_text(model_cluster, client)):
            pieces.append(piece)
            if number == 10:
                for worker in model_cluster.workers().values():
                    worker.send_signal(signal.SIGKILL)
    assert "".join(pieces) == text
