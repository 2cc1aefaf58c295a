"""The router inside Serve's own routing loop, with replicas that are not there and a clock that stands still."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from chorus_cluster.routing.router import OutstandingTokensRouter
from chorus_protos.v1 import engine_pb2

DEPLOYMENT = DeploymentID(name="Worker", app_name="chorus")


class FakeReplica:
    """What the routing loop asks of a replica."""

    def __init__(self, name: str, max_ongoing_requests: int = 1000) -> None:
        self.replica_id = ReplicaID(name, deployment_id=DEPLOYMENT)
        self.max_ongoing_requests = max_ongoing_requests
        self.multiplexed_model_ids: set[str] = set()
        self.node_id = "node"
        self.availability_zone = None
        self.routing_stats: dict[str, Any] = {}
        self.queue_len = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.queue_len


@pytest.fixture
async def router() -> AsyncIterator[OutstandingTokensRouter]:
    router = OutstandingTokensRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        get_curr_time_s=lambda: 0.0,
    )
    router.initialize_state(expected_output_tokens=100)
    yield router
    assert not router._routing_tasks


def pending(call_id: str, num_prompt_tokens: int = 10, max_tokens: int = 0, request_id: str = "") -> PendingRequest:
    request = engine_pb2.GenerateRequest(
        request_id=request_id or call_id, prompt_token_ids=range(num_prompt_tokens), max_tokens=max_tokens
    )
    metadata = RequestMetadata(request_id=call_id, internal_request_id=call_id)
    return PendingRequest(args=[request], kwargs={}, metadata=metadata)


async def route(router: OutstandingTokensRouter, request: PendingRequest) -> str:
    replica = await asyncio.wait_for(router._choose_replica_for_request(request), 5)
    router.on_send_request(replica.replica_id)
    router.on_request_routed(request, replica.replica_id, None)
    return str(replica.replica_id.unique_id)


async def settle(router: OutstandingTokensRouter) -> None:
    while router._routing_tasks:
        await asyncio.sleep(0)


def outstanding(router: OutstandingTokensRouter, name: str) -> int:
    return router._ledger.outstanding_tokens(name)


async def test_simultaneous_requests_do_not_herd(router: OutstandingTokensRouter) -> None:
    router.update_replicas([FakeReplica(name) for name in "abcd"])
    chosen = await asyncio.gather(*(route(router, pending(f"call{i}")) for i in range(40)))
    assert Counter(chosen) == {"a": 10, "b": 10, "c": 10, "d": 10}
    await settle(router)


async def test_each_request_gets_the_replica_that_was_chosen_for_it(router: OutstandingTokensRouter) -> None:
    router.update_replicas([FakeReplica("a"), FakeReplica("b")])
    big = await route(router, pending("big", num_prompt_tokens=5000))
    small = [await route(router, pending(f"small{i}")) for i in range(5)]
    assert set(small) == {"a", "b"} - {big}
    assert outstanding(router, big) == 5100
    await settle(router)


async def test_completion_releases_and_the_cost_honours_the_limit(router: OutstandingTokensRouter) -> None:
    router.update_replicas([FakeReplica("a")])
    await route(router, pending("call", num_prompt_tokens=7, max_tokens=5))
    assert outstanding(router, "a") == 12
    router.on_request_completed(ReplicaID("a", deployment_id=DEPLOYMENT), "call")
    assert outstanding(router, "a") == 0
    resumed = engine_pb2.GenerateRequest(prompt_token_ids=range(12), max_tokens=8, num_resumed_tokens=5)
    assert router.cost(resumed) == 12 + 3
    await settle(router)


async def test_a_full_replica_is_passed_over_and_the_booking_follows(router: OutstandingTokensRouter) -> None:
    full, free = FakeReplica("full", max_ongoing_requests=1), FakeReplica("free")
    full.queue_len = 1
    free.routing_stats = {"num_outstanding_tokens": 10_000}
    router.update_replicas([full, free])
    assert await route(router, pending("call")) == "free"
    assert outstanding(router, "full") == 0
    assert outstanding(router, "free") == 10_110
    await settle(router)


async def test_waiting_for_room_backs_off_and_cancelling_gives_the_booking_back(
    router: OutstandingTokensRouter,
) -> None:
    full = FakeReplica("full", max_ongoing_requests=1)
    full.queue_len = 1
    router.update_replicas([full])
    request = pending("call")
    waiting = asyncio.create_task(route(router, request))
    await asyncio.sleep(0.01)
    assert request.routing_context.should_backoff
    assert outstanding(router, "full") == 110
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert outstanding(router, "full") == 0
    full.queue_len = 0
    await settle(router)


async def test_leaving_in_the_turn_in_which_a_worker_is_found_gives_the_booking_back(
    router: OutstandingTokensRouter,
) -> None:
    router.update_replicas([FakeReplica("a")])
    request = pending("call")
    choosing = asyncio.create_task(router._choose_replica_for_request(request))
    request.future.add_done_callback(lambda _: choosing.cancel())
    with pytest.raises(asyncio.CancelledError):
        await choosing
    assert request.future.result().replica_id.unique_id == "a"
    # Serve sends nothing then, so it tells of no completion either.
    assert outstanding(router, "a") == 0
    await settle(router)


async def test_leaving_before_a_second_choice_accepts_gives_the_booking_back(router: OutstandingTokensRouter) -> None:
    full, free = FakeReplica("full", max_ongoing_requests=1), FakeReplica("free")
    full.queue_len = 1
    free.routing_stats = {"num_outstanding_tokens": 10_000}
    router.update_replicas([full, free])
    replica = await asyncio.wait_for(router._choose_replica_for_request(pending("call")), 5)
    assert replica.replica_id.unique_id == "free"
    # The call was sent, and is cancelled before the worker has said that it takes it.
    router.on_request_completed(replica.replica_id, "call")
    assert outstanding(router, "full") == 0
    assert outstanding(router, "free") == 10_000
    await settle(router)


async def test_a_call_that_has_left_is_not_booked_again(router: OutstandingTokensRouter) -> None:
    replicas = [FakeReplica("a")]
    router.update_replicas(replicas)
    request = pending("call")
    request.future.set_result(replicas[0])
    await router.choose_replicas(replicas, request)
    await asyncio.sleep(0)
    assert outstanding(router, "a") == 0


async def test_reports_steer_and_a_retry_avoids_the_worker_it_had(router: OutstandingTokensRouter) -> None:
    busy, idle = FakeReplica("busy"), FakeReplica("idle")
    busy.routing_stats = {"num_outstanding_tokens": 4000}
    router.update_replicas([busy, idle])
    assert await route(router, pending("one", request_id="chat")) == "idle"
    # Idle still has far less to do, but this request failed there.
    assert await route(router, pending("two", request_id="chat")) == "busy"
    assert await route(router, pending("three", request_id="other")) == "idle"
    await settle(router)


async def test_calls_without_a_request_cost_nothing(router: OutstandingTokensRouter) -> None:
    router.update_replicas([FakeReplica("a"), FakeReplica("b")])
    info = PendingRequest(
        args=[engine_pb2.GetModelInfoRequest()],
        kwargs={},
        metadata=RequestMetadata(request_id="info", internal_request_id="info"),
    )
    name = await route(router, info)
    assert outstanding(router, name) == 0
    assert await router.choose_replicas([]) == [[]]
    await settle(router)
