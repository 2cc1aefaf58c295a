"""Too many requests, and requests that end in every way there is: the accounts of all parties must agree."""

import asyncio
import random
from collections import Counter

import grpc
import httpx
import pytest
from tests.integration.cluster import Cluster, wait_until

from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

pytestmark = pytest.mark.slow

# What two workers of the fake cluster run and queue.
CAPACITY = 2 * (8 + 4)


async def test_an_overloaded_cluster_refuses_before_any_byte_of_an_answer(fake_cluster: Cluster) -> None:
    num_requests = 3 * CAPACITY
    body = fake_cluster.chat_body(max_completion_tokens=103, stream=True)

    async def ask(client: httpx.AsyncClient) -> tuple[int, str | None, str]:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            text = (await response.aread()).decode()
            return response.status_code, response.headers.get("retry-after"), text

    limits = httpx.Limits(max_connections=num_requests)
    async with httpx.AsyncClient(base_url=fake_cluster.url, timeout=60, limits=limits, trust_env=False) as client:
        results = await asyncio.gather(*(ask(client) for _ in range(num_requests)))
    statuses = Counter(status for status, _, _ in results)
    assert set(statuses) == {200, 429}
    # Refused are those that find no room, not many more: some find room that others have left.
    assert CAPACITY - 4 <= statuses[200] <= num_requests - 10
    for status, retry_after, text in results:
        if status == 429:
            assert retry_after is not None and int(retry_after) >= 1
            assert '"code":"overloaded"' in text.replace(" ", "")
        else:
            assert text.count('"content"') > 1 and text.rstrip().endswith("data: [DONE]")


def totals(cluster: Cluster) -> dict[str, float]:
    return {
        "gateway_running": cluster.total("chorus_gateway_chats_running"),
        "engine_running": cluster.total("chorus_requests_running"),
        "engine_waiting": cluster.total("chorus_requests_waiting"),
        "outstanding": cluster.total("chorus_outstanding_tokens"),
        "kv_usage": cluster.total("chorus_kv_usage_ratio"),
        "serve_running": cluster.total(
            "ray_serve_replica_processing_queries", cluster.ray_metrics_url, deployment="Worker"
        ),
        "serve_routed": cluster.total(
            "ray_serve_num_ongoing_requests_at_replicas", cluster.ray_metrics_url, deployment="Worker"
        ),
    }


async def over_http(cluster: Cluster, client: httpx.AsyncClient, rng: random.Random) -> str:
    """One request that finishes, or leaves after a while, or has a deadline."""
    body = cluster.chat_body(max_completion_tokens=rng.randrange(4, 150), stream=True)
    headers = {"x-request-timeout-s": f"{rng.uniform(0.02, 0.5):.3f}"} if rng.random() < 0.3 else {}
    patience_s = rng.uniform(0.005, 0.6) if rng.random() < 0.6 else 60.0
    try:
        async with (
            asyncio.timeout(patience_s),
            client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
        ):
            text = (await response.aread()).decode()
    except TimeoutError:
        return "left"
    assert response.status_code in (200, 429, 504), text
    if response.status_code == 200 and "deadline_exceeded" not in text:
        assert text.rstrip().endswith("data: [DONE]")
        return "finished"
    return "ended"


async def over_grpc(stub: chat_pb2_grpc.ChatServiceStub, rng: random.Random) -> str:
    """One request that finishes, is cancelled, or passes its gRPC deadline."""
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hello")
    request = chat_pb2.ChatCompletionRequest(
        model="test", messages=[message], max_completion_tokens=rng.randrange(4, 150)
    )
    timeout_s = rng.uniform(0.02, 0.5) if rng.random() < 0.4 else 60.0
    leave_after = rng.randrange(1, 8) if rng.random() < 0.5 else None
    call = stub.StreamChatCompletion(request, timeout=timeout_s)
    try:
        num_chunks = 0
        async for _ in call:
            num_chunks += 1
            if num_chunks == leave_after:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        return "ended"
    except asyncio.CancelledError:
        # What a call raises that was cancelled, by us.
        assert call.cancelled()
        return "left"
    return "finished"


def ended(cluster: Cluster) -> Counter[str]:
    """How many requests have ended so far, as the gateways and as the engines count them."""
    return Counter(
        gateway=int(cluster.total("chorus_gateway_chats_total")),
        gateway_finished=int(cluster.total("chorus_gateway_chats_total", outcome="length")),
        gateway_first_tokens=int(cluster.total("chorus_gateway_time_to_first_token_seconds_count")),
        gateway_retries=int(cluster.total("chorus_gateway_engine_retries_total")),
        engine=int(cluster.total("chorus_requests_finished_total")),
        engine_finished=int(cluster.total("chorus_requests_finished_total", reason="length")),
        engine_refused=int(cluster.total("chorus_requests_refused_total")),
    )


async def settle(cluster: Cluster) -> None:
    """Waits until nobody counts a request any more."""
    # Pages are up to a second old, and Ray's own metrics somewhat older.
    await asyncio.sleep(2.5)
    wait_until(lambda: not any(totals(cluster).values()), 30, "all counts are zero")
    assert not any(totals(cluster).values())


async def test_accounts_agree_after_churn_and_every_kv_block_is_free(fake_cluster: Cluster) -> None:
    num_requests = 400
    await settle(fake_cluster)
    before = ended(fake_cluster)
    rng = random.Random(20)
    limits = httpx.Limits(max_connections=40)
    async with (
        httpx.AsyncClient(base_url=fake_cluster.url, timeout=60, limits=limits, trust_env=False) as client,
        grpc.aio.insecure_channel(fake_cluster.grpc_address) as channel,
    ):
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        slots = asyncio.Semaphore(20)

        async def one(seed: int) -> str:
            mine = random.Random(seed)
            async with slots:
                return await (over_http(fake_cluster, client, mine) if seed % 2 else over_grpc(stub, mine))

        seen = Counter(await asyncio.gather(*(one(rng.randrange(1 << 30)) for _ in range(num_requests))))
    assert min(seen["finished"], seen["left"], seen["ended"]) > 10, seen
    await settle(fake_cluster)
    after = ended(fake_cluster)
    after.subtract(before)
    # Outside in: a client may leave before its request arrives, or before it hears what became of it.
    assert seen["finished"] <= after["gateway_finished"] <= after["engine_finished"], (seen, after)
    assert after["gateway_first_tokens"] <= after["engine"] <= after["gateway"] <= num_requests, (seen, after)
    assert after["engine"] + after["engine_refused"] <= after["gateway"] + after["gateway_retries"], (seen, after)
