"""An engine client without workers: plays token ids from a script. For tests and benchmarks of the gateway."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from chorus_cluster.errors import ChorusError
from chorus_protos.v1 import engine_pb2


@dataclass(slots=True)
class FakeEngineClient:
    """Answers every request with `script`: the token ids themselves, or a function of the request that makes them.

    As a worker does, it sends the first token in a message of its own and ends at a stop token, at `max_tokens` or
    with the script; as `EngineClient` says, closing the iterator aborts the request.
    """

    script: Sequence[int] | Callable[[engine_pb2.GenerateRequest], Sequence[int]]
    model: str = "fake-model"
    max_model_len: int = 4096
    vocab_size: int = 201088
    # Of every message but the first.
    tokens_per_message: int = 1
    # Seconds before every message but the first.
    interval_s: float = 0.0
    # Raised instead of the first message.
    refusal: ChorusError | None = None
    # Raised instead of the message that would hold this token.
    failure: tuple[int, ChorusError] | None = None
    # Sent with the last message instead of what ended the request.
    finish_reason: "engine_pb2.FinishReason.ValueType | None" = None
    # While it is cleared, no message but the first is sent.
    gate: asyncio.Event | None = None

    # What was asked, for assertions.
    requests: list[engine_pb2.GenerateRequest] = field(default_factory=list)
    num_running: int = 0
    num_aborted: int = 0

    async def model_info(self) -> engine_pb2.ModelInfo:
        if self.refusal is not None:
            raise self.refusal
        return engine_pb2.ModelInfo(
            model=self.model, vocab_size=self.vocab_size, max_model_len=self.max_model_len, num_shards=1
        )

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.num_running += 1
        has_finished = False
        try:
            tokens, reason = self._play(request)
            at = 0
            while not has_finished:
                if at:
                    await self._wait()
                end = min(at + (self.tokens_per_message if at else 1), len(tokens))
                if self.failure is not None and self.failure[0] < end:
                    raise self.failure[1]
                has_finished = end == len(tokens)
                response = engine_pb2.GenerateResponse(token_ids=tokens[at:end])
                if has_finished:
                    response.finish_reason = reason
                if request.sampling.HasField("logprobs"):
                    response.logprobs.extend(_logprobs(tokens[at:end], request.sampling.logprobs))
                at = end
                yield response
        finally:
            self.num_running -= 1
            self.num_aborted += not has_finished

    def _play(self, request: engine_pb2.GenerateRequest) -> "tuple[Sequence[int], engine_pb2.FinishReason.ValueType]":
        """The tokens that are sent, and what ends them."""
        script = self.script(request) if callable(self.script) else self.script
        stops = set(request.sampling.stop_token_ids)
        end = next((i for i, token in enumerate(script, 1) if token in stops), None)
        tokens, reason = script[:end], engine_pb2.FINISH_REASON_STOP if end else engine_pb2.FINISH_REASON_LENGTH
        if request.max_tokens and len(tokens) > request.max_tokens:
            tokens, reason = tokens[: request.max_tokens], engine_pb2.FINISH_REASON_LENGTH
        return tokens, reason if self.finish_reason is None else self.finish_reason

    async def _wait(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.interval_s)


def _logprobs(tokens: Sequence[int], num_top: int) -> list[engine_pb2.PositionLogprobs]:
    """The sampled token at -0.5; as alternatives itself and the ids that follow it, each one nat less likely."""
    return [
        engine_pb2.PositionLogprobs(
            sampled=engine_pb2.TokenLogprob(token_id=token, logprob=-0.5),
            top=[engine_pb2.TokenLogprob(token_id=token + i, logprob=-0.5 - i) for i in range(num_top)],
        )
        for token in tokens
    ]
