"""A clock that is set by hand, and a runner that simulates KV memory and refuses every wrong batch."""

from collections.abc import Sequence
from zlib import crc32

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.output import StepOutput
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.runner.base import Batch, Runner, RunnerInfo, SampledToken, SampleRequest, SequenceChunk, StepResult
from chorus_workers.sampling_params import SamplingParams

WINDOW = 5
VOCAB_SIZE = 50
STOP_TOKEN = 0
NOT_FINITE_SEED = 666


class ManualClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SimulatedRunner(Runner):
    """Keeps token ids where a model would keep KV, in pages and rings, and draws from what it finds there.

    A scheduler that hands out a page twice, forgets a token or loses a ring gets another answer, or an AssertionError.
    """

    def __init__(
        self,
        clock: ManualClock | None = None,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        num_slots: int = 4,
        max_batched_tokens: int = 16,
        max_model_len: int = 64,
        step_time_s: float = 1.0,
    ) -> None:
        self._info = RunnerInfo(
            VOCAB_SIZE, max_model_len, block_size, num_blocks, num_slots, max_batched_tokens, num_shards=1
        )
        self._clock = clock
        self._step_time_s = step_time_s
        self._pages: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._rings: list[list[int]] = [[] for _ in range(num_slots)]
        self.batches: list[Batch] = []

    @property
    def info(self) -> RunnerInfo:
        return self._info

    def run(self, batch: Batch) -> StepResult:
        self._check(batch)
        self.batches.append(batch)
        sampled = [self._run_chunk(chunk) for chunk in batch.chunks]
        if self._clock is not None:
            self._clock.now += self._step_time_s
        return StepResult(sampled)

    def close(self) -> None:
        pass

    def _check(self, batch: Batch) -> None:
        chunks = batch.chunks
        assert chunks, "an empty batch was run"
        assert len({chunk.request_id for chunk in chunks}) == len(chunks)
        assert len({chunk.slot for chunk in chunks}) == len(chunks)
        pages = [page for chunk in chunks for page in chunk.block_table]
        assert len(set(pages)) == len(pages)
        assert sum(len(chunk.token_ids) for chunk in chunks) <= self._info.max_batched_tokens
        assert all(chunk.token_ids for chunk in chunks)

    def _run_chunk(self, chunk: SequenceChunk) -> SampledToken | None:
        size = self._info.block_size
        for position, token_id in enumerate(chunk.token_ids, start=chunk.start):
            self._pages[chunk.block_table[position // size]][position % size] = token_id
        ring = [] if chunk.start == 0 else self._rings[chunk.slot]
        self._rings[chunk.slot] = [*ring, *chunk.token_ids][-WINDOW:]
        if chunk.sample is None:
            return None
        end = chunk.start + len(chunk.token_ids)
        assert end == len(chunk.sample.all_token_ids)
        seen = [self._pages[chunk.block_table[position // size]][position % size] for position in range(end)]
        return draw(chunk.sample, seen, self._rings[chunk.slot])


def draw(sample: SampleRequest, seen: Sequence[int | None], ring: Sequence[int]) -> SampledToken:
    if sample.params.seed == NOT_FINITE_SEED:
        return SampledToken(0, failed=True)
    token_id = crc32(repr((sample.params.seed, len(seen), seen, ring, sample.num_prompt_tokens)).encode()) % VOCAB_SIZE
    logprob = None if sample.params.num_top_logprobs is None else -float(token_id)
    return SampledToken(token_id, logprob)


def ask(
    request_id: str,
    prompt: Sequence[int] = (1, 2, 3),
    max_tokens: int = 8,
    *,
    seed: int = 7,
    clock: ManualClock | None = None,
    **fields: object,
) -> GenerationRequest:
    return GenerationRequest(
        request_id,
        list(prompt),
        SamplingParams(seed=seed, stop_token_ids=frozenset({STOP_TOKEN})),
        max_tokens,
        arrival_time=clock() if clock else 0.0,
        **fields,  # type: ignore[arg-type]
    )


def alone(asked: GenerationRequest, max_model_len: int = 64) -> tuple[list[int], FinishReason]:
    """What a request draws when nobody is beside it and there is memory for everything, computed without an engine."""
    tokens = list(asked.prompt_token_ids)
    num_prompt_tokens = len(tokens) - asked.num_resumed_tokens
    limit = min(num_prompt_tokens + asked.max_tokens, max_model_len) if asked.max_tokens else max_model_len
    drawn: list[int] = []
    while True:
        if len(tokens) > num_prompt_tokens and tokens[-1] in asked.params.stop_token_ids:
            return drawn, FinishReason.STOP
        if len(tokens) >= limit:
            return drawn, FinishReason.LENGTH
        token = draw(SampleRequest(asked.params, tokens, num_prompt_tokens), tokens, tokens[-WINDOW:])
        if token.failed:
            return drawn, FinishReason.ERROR
        tokens.append(token.token_id)
        drawn.append(token.token_id)


class Gathered:
    """Outputs of many steps, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, FinishReason] = {}
        self.messages: dict[str, str] = {}

    def take(self, output: StepOutput) -> None:
        for request_id, token_id in zip(output.request_ids, output.token_ids, strict=True):
            assert request_id not in self.finished, "a token after the end"
            self.tokens.setdefault(request_id, []).append(token_id)
        for request_id, (reason, message) in output.finished.items():
            assert request_id not in self.finished, "finished twice"
            self.finished[request_id] = reason
            self.messages[request_id] = message


def run_all(engine: Engine, gathered: Gathered | None = None) -> Gathered:
    gathered = gathered or Gathered()
    for _ in range(10_000):
        if not engine.has_requests:
            gathered.take(engine.step())
            engine.check_integrity()
            return gathered
        gathered.take(engine.step())
    raise AssertionError("the engine does not come to an end")
