"""Chooses the worker for each request: the one with the least outstanding tokens.

Runs inside every gateway, on Serve's public request-router interface. Serve keeps the rest: it queues, counts, probes
workers that look full, and drops those that die. Serve copies this class by value into the gateway's process, so all
state lives in the instance, and none in this module.
"""

import asyncio
import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from chorus_cluster.routing.load import LoadLedger
from chorus_protos.v1 import engine_pb2


class OutstandingTokensRouter(RequestRouter):
    """Books a request's cost while it chooses, so that simultaneous requests see each other and don't herd."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Takes `expected_output_tokens`, the answer length to assume where the request's limit is not lower."""
        self._expected_output_tokens: int = kwargs["expected_output_tokens"]
        self._ledger = LoadLedger(random.Random())

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One worker a rank, best first; Serve takes the first that has room."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if pending_request is None or not by_name:
            return [candidate_replicas]
        # Without it Serve would call again at once, for as long as all workers are full.
        pending_request.routing_context.should_backoff = True
        request = _generate_request(pending_request)
        ranked = self._ledger.rank(list(by_name), None if request is None else request.request_id)
        # A call that left, or was served otherwise, while Serve looked for room is over: no completion would follow.
        if not pending_request.future.done():
            self._book(pending_request, ranked[0], 0 if request is None else self.cost(request))
        return [[by_name[name]] for name in ranked]

    def cost(self, request: engine_pb2.GenerateRequest) -> int:
        """Tokens that a worker is expected to compute for it."""
        expected = self._expected_output_tokens
        if request.max_tokens:
            expected = min(expected, max(0, request.max_tokens - request.num_resumed_tokens))
        return len(request.prompt_token_ids) + expected

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._ledger.move(_call_id(pending_request), replica_id.unique_id)
        request = _generate_request(pending_request)
        if request is not None:
            self._ledger.remember(request.request_id, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._ledger.drop(internal_request_id, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._ledger.keep_only({replica.replica_id.unique_id for replica in replicas})
        for replica in replicas:
            outstanding = replica.routing_stats.get("num_outstanding_tokens")
            if outstanding is not None:
                self._ledger.report(replica.replica_id.unique_id, int(outstanding))

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """Serve's own; a call that leaves in the very turn in which a worker was found is sent nowhere."""
        try:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except asyncio.CancelledError:
            self._ledger.drop(_call_id(pending_request))
            raise

    def _book(self, pending_request: PendingRequest, worker: str, tokens: int) -> None:
        call_id = _call_id(pending_request)
        self._ledger.assign(call_id, worker, tokens)

        def follow(future: "asyncio.Future[RunningReplica]") -> None:
            if future.cancelled():
                # A call that is cancelled before it got a worker completes nowhere.
                self._ledger.drop(call_id)
            else:
                # From here on it may complete, on the worker that Serve took, without ever being routed.
                self._ledger.move(call_id, future.result().replica_id.unique_id)

        pending_request.future.add_done_callback(follow)


def _call_id(pending_request: PendingRequest) -> str:
    return str(pending_request.metadata.internal_request_id)


def _generate_request(pending_request: PendingRequest) -> engine_pb2.GenerateRequest | None:
    """The request, if the call is one to generate: other calls cost nothing."""
    first = pending_request.args[0] if pending_request.args else None
    return first if isinstance(first, engine_pb2.GenerateRequest) else None
