"""What the workers serve, remembered: asking them costs a call, and every request needs the answer."""

import asyncio
import logging
import time
from collections.abc import Callable

from chorus_cluster.errors import ChorusError
from chorus_cluster.routing.engine_client import EngineClient
from chorus_protos.v1 import engine_pb2

logger = logging.getLogger(__name__)

# How old an answer may get before it is asked for again, beside the request that noticed.
REFRESH_AFTER_S = 10.0


class ModelInfoCache:
    """Holds the workers' last answer. Only the first request waits for one, together with those beside it."""

    def __init__(self, engine: EngineClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._info: engine_pb2.ModelInfo | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[engine_pb2.ModelInfo] | None = None

    async def get(self) -> engine_pb2.ModelInfo:
        """The model's description.

        Errors: `Unavailable` while no worker has ever answered.
        """
        if self._info is None:
            return await self.ask()
        if self._clock() - self._asked_at > REFRESH_AFTER_S and self._asking is None:
            self._start().add_done_callback(_log_failure)
        return self._info

    async def ask(self) -> engine_pb2.ModelInfo:
        """Asks the workers now.

        Errors: `Unavailable` when none answers.
        """
        # Shielded: who leaves doesn't take the answer from those who wait too.
        return await asyncio.shield(self._asking or self._start())

    def _start(self) -> "asyncio.Task[engine_pb2.ModelInfo]":
        self._asking = asyncio.get_running_loop().create_task(self._ask())
        return self._asking

    async def _ask(self) -> engine_pb2.ModelInfo:
        self._asked_at = self._clock()
        try:
            self._info = await self._engine.model_info()
        finally:
            self._asking = None
        return self._info


def _log_failure(task: "asyncio.Task[engine_pb2.ModelInfo]") -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, ChorusError):
        logger.warning("The workers did not say what they serve: %s", error.code)
    elif error is not None:
        logger.error("Asking the workers what they serve failed", exc_info=error)
