"""What the gateway knows of the workers: token ids in, token ids out."""

from collections.abc import AsyncIterator
from typing import Protocol

from chorus_protos.v1 import engine_pb2


class EngineClient(Protocol):
    """A pool of workers that all serve the same model.

    Whatever implements it hides which worker serves a request, retries before the first token, and resumption on
    another worker when one dies: the caller sees one stream.
    """

    async def model_info(self) -> engine_pb2.ModelInfo:
        """What the workers serve.

        Errors: `Unavailable` when no worker answers.
        """
        ...

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateResponse]:
        """Streams the continuation of a prompt; the last response carries a finish reason.

        The request must name its seed and must not be changed by the caller while the stream runs. Responses never
        carry a refusal: refusals are raised as the errors of `chorus_cluster.errors`, and before the first response,
        so whoever awaits the first response knows whether the request was admitted. Closing the iterator (`aclose`,
        or cancelling the task that awaits it) aborts the request on its worker.
        """
        ...
