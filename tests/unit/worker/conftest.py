"""A worker on a fake model, outside of Ray."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest

from chorus_workers.config import WorkerConfig
from chorus_workers.runner.fake import FakeModel
from chorus_workers.worker import Worker

PREFIX = (200005, 17196, 200008)
BODY, STOP = 1234, 200002


async def start_worker(config: WorkerConfig) -> Worker:
    """Builds a worker as Serve does."""
    worker = Worker.__new__(Worker)
    await cast(Callable[[WorkerConfig], Awaitable[None]], worker.__init__)(config)  # type: ignore[misc]
    return worker


def fake_config(model: FakeModel | None = None, **settings: object) -> WorkerConfig:
    model = model or FakeModel(step_time_s=0.002, prefix=PREFIX, body=BODY, stop=STOP, num_tokens=12)
    return WorkerConfig(model=model.to_config(), served_model_name="fake", **settings)  # type: ignore[arg-type]


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = await start_worker(fake_config())
    yield worker
    await worker.shutdown()
