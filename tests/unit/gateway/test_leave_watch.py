"""Who cancelled a request: its client, or somebody else."""

import asyncio

import pytest

from chorus_cluster.gateway.http.io import ClientLeft, LeaveWatch


async def disconnected() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def serve_for_ever() -> None:
    async with LeaveWatch(disconnected):
        await asyncio.Event().wait()


async def test_a_client_that_leaves_is_no_cancellation() -> None:
    with pytest.raises(ClientLeft):
        await asyncio.create_task(serve_for_ever())


async def test_a_cancellation_by_others_goes_before_the_client_s_leaving() -> None:
    serving = asyncio.create_task(serve_for_ever())
    await asyncio.sleep(0)
    # Both in one turn: the watcher has not run yet.
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert serving.cancelled()
