"""A clock that is set by hand, and a runner that simulates KV memory and refuses every wrong batch."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

from tests.support.overlapping_runner import OverlappingRunner

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.output import StepOutput
from chorus_workers.engine.request import FinishReason, GenerationRequest, Refusal
from chorus_workers.runner.base import (
    PENDING_TOKEN,
    Batch,
    Runner,
    RunnerInfo,
    SampledToken,
    SampleRequest,
    SequenceChunk,
    StepResult,
)
from chorus_workers.sampling_params import SamplingParams

WINDOW = 5
VOCAB_SIZE = 50
STOP_TOKEN = 0
NOT_FINITE_SEED = 666
# A token, the salt of the request that it was computed for, and whether it was computed as one that was generated.
Entry = tuple[int | None, str, bool]


class ManualClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SimulatedRunner(Runner):
    """Keeps token ids where a model would keep KV, in pages and rings, and draws from what it finds there.

    A scheduler that hands out a page twice, forgets a token or loses a ring gets another answer, or an AssertionError.
    So does one that lets a request see what was written for another salt; or, if batches must not matter, a prompt that
    was computed as if generated, or the other way round.
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
        token_time_s: float = 0.0,
        num_snapshots: int = 0,
        has_window_layers: bool = True,
        batch_invariant: bool = False,
        token_ids: Sequence[int] | None = None,
    ) -> None:
        self.token_ids_of_columns = token_ids
        self._info = RunnerInfo(
            VOCAB_SIZE,
            max_model_len,
            block_size,
            num_blocks,
            num_slots,
            max_batched_tokens,
            num_shards=1,
            num_snapshots=num_snapshots,
            has_window_layers=has_window_layers,
            batch_invariant=batch_invariant,
        )
        self._clock = clock
        self._step_time_s, self._token_time_s = step_time_s, token_time_s
        self._pages: list[list[Entry]] = [[(None, "", False)] * block_size for _ in range(num_blocks)]
        self._rings: list[list[Entry]] = [[] for _ in range(num_slots)]
        self._snapshots: list[list[Entry]] = [[] for _ in range(num_snapshots)]
        # The position that follows what a ring or snapshot holds.
        self._ring_ends, self._snapshot_ends = [0] * num_slots, [0] * num_snapshots
        # Salts of requests that have one.
        self.salts: Mapping[str, str] = {}
        self.batches: list[Batch] = []

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def token_ids(self) -> Sequence[int] | None:
        return self.token_ids_of_columns

    def run(self, batch: Batch) -> StepResult:
        self._check(batch)
        self.batches.append(batch)
        for chunk in batch.chunks:
            if chunk.restore is not None:
                self._rings[chunk.slot] = self._snapshots[chunk.restore]
                self._ring_ends[chunk.slot] = self._snapshot_ends[chunk.restore]
        sampled = [self._run_chunk(chunk) for chunk in batch.chunks]
        if self._clock is not None:
            self._clock.now += self._step_time_s + self._token_time_s * sum(len(c.token_ids) for c in batch.chunks)
        return StepResult(sampled)

    def close(self) -> None:
        pass

    def _check(self, batch: Batch) -> None:
        chunks = batch.chunks
        assert chunks, "an empty batch was run"
        assert len({chunk.request_id for chunk in chunks}) == len(chunks)
        assert len({chunk.slot for chunk in chunks}) == len(chunks)
        holders = Counter(page for chunk in chunks for page in set(chunk.block_table))
        for chunk in chunks:
            assert len(set(chunk.block_table)) == len(chunk.block_table)
            assert all(holders[page] == 1 for page in self._written(chunk)), "a page that others hold is written"
            assert chunk.restore is None or chunk.start > 0
            stops = [chunk.start, *(position for position, _ in chunk.saves), chunk.start + len(chunk.token_ids)]
            assert stops == sorted(stops) and stops[:1] != stops[1:2]
            assert not chunk.saves or chunk.sample is None or len(chunk.token_ids) > 1
        snapshots = [snapshot for chunk in chunks for _, snapshot in chunk.saves]
        assert len(set(snapshots)) == len(snapshots)
        assert sum(len(chunk.token_ids) for chunk in chunks) <= self._info.max_batched_tokens
        assert all(chunk.token_ids and PENDING_TOKEN not in chunk.token_ids for chunk in chunks)

    def _written(self, chunk: SequenceChunk) -> Sequence[int]:
        """The pages that a chunk writes to."""
        size = self._info.block_size
        return chunk.block_table[chunk.start // size : (chunk.start + len(chunk.token_ids) - 1) // size + 1]

    def _run_chunk(self, chunk: SequenceChunk) -> SampledToken | None:
        size, salt = self._info.block_size, self.salts.get(chunk.request_id, "")
        generated = is_generated(chunk)
        entries = [(token_id, salt, generated) for token_id in chunk.token_ids]
        for position, entry in enumerate(entries, start=chunk.start):
            self._pages[chunk.block_table[position // size]][position % size] = entry
        ring = [] if chunk.start == 0 else self._rings[chunk.slot]
        if self._info.has_window_layers:
            assert chunk.start in (0, self._ring_ends[chunk.slot]), "the ring holds another position's window"
        self._ring_ends[chunk.slot] = chunk.start + len(entries)
        self._rings[chunk.slot] = [*ring, *entries][-WINDOW:]
        for position, snapshot in chunk.saves:
            self._snapshots[snapshot] = [*ring, *entries[: position - chunk.start]][-WINDOW:]
            self._snapshot_ends[snapshot] = position
        if chunk.sample is None:
            return None
        end = chunk.start + len(chunk.token_ids)
        assert end == chunk.sample.position
        seen = [self._pages[chunk.block_table[position // size]][position % size] for position in range(end)]
        window = self._rings[chunk.slot] if self._info.has_window_layers else seen[-WINDOW:]
        assert {salt_of for _, salt_of, _ in [*seen, *window]} == {salt}, "what another salt computed is seen"
        if self._info.batch_invariant:
            ways = [position >= chunk.sample.num_prompt_tokens for position in range(end)]
            assert [way for *_, way in seen] == ways, "a token was computed in another way"
            assert [way for *_, way in window] == ways[-WINDOW:], "a token was computed in another way"
        seen_ids, window_ids = [token_id for token_id, *_ in seen], [token_id for token_id, *_ in window]
        return draw(chunk.sample, seen_ids, window_ids, self.token_ids or range(VOCAB_SIZE))


def is_generated(chunk: SequenceChunk) -> bool:
    """Whether a runner whose batches must not matter computes a chunk as a token that was generated."""
    if len(chunk.token_ids) > 1 or chunk.saves:
        assert not chunk.replayed
        return False
    return chunk.replayed or (chunk.sample is not None and chunk.start >= chunk.sample.num_prompt_tokens)


# The engine, its runner's memory, and the clock. Keywords are build_engine's.
Build = Callable[..., tuple[Engine, SimulatedRunner, ManualClock]]


def build_engine(
    *,
    overlaps: bool = False,
    max_queued_requests: int = 100,
    prefix_cache: bool = True,
    step_budget_s: float | None = None,
    grammar_timeout_s: float = math.inf,
    **settings: object,
) -> tuple[Engine, SimulatedRunner, ManualClock]:
    """An engine whose runner computes each step at once, or, if it overlaps, when the next one was launched."""
    clock = ManualClock()
    simulated = SimulatedRunner(clock, **settings)  # type: ignore[arg-type]
    runner = OverlappingRunner(simulated) if overlaps else simulated
    engine = Engine(
        runner,
        max_queued_requests=max_queued_requests,
        clock=clock,
        prefix_cache=prefix_cache,
        step_budget_s=step_budget_s,
        grammar_timeout_s=grammar_timeout_s,
    )
    return engine, simulated, clock


def draw(
    sample: SampleRequest,
    seen: Sequence[int | None],
    ring: Sequence[int | None],
    token_ids: Sequence[int] = range(VOCAB_SIZE),
) -> SampledToken:
    """A column by what is seen; where a mask forbids it, one that it allows."""
    if sample.params.seed == NOT_FINITE_SEED:
        return SampledToken(0, failed=True)
    number = crc32(repr((sample.params.seed, len(seen), seen, ring, sample.num_prompt_tokens)).encode())
    allowed = [column for column in range(VOCAB_SIZE) if _allows(sample, column)]
    if not allowed:
        return SampledToken(0, failed=True)
    column = number % VOCAB_SIZE
    overruled = column not in allowed
    if overruled:
        column = allowed[number % len(allowed)]
    token_id = token_ids[column]
    logprob = None if sample.params.num_top_logprobs is None else -float(token_id)
    return SampledToken(token_id, logprob, overruled=overruled)


def _allows(sample: SampleRequest, column: int) -> bool:
    return sample.mask is None or bool(sample.mask[column >> 5] >> (column & 31) & 1)


def ask(
    request_id: str,
    prompt: Sequence[int] = (1, 2, 3),
    max_tokens: int = 8,
    *,
    seed: int = 7,
    presence_penalty: float = 0.0,
    clock: ManualClock | None = None,
    **fields: object,
) -> GenerationRequest:
    return GenerationRequest(
        request_id,
        list(prompt),
        SamplingParams(seed=seed, presence_penalty=presence_penalty, stop_token_ids=frozenset({STOP_TOKEN})),
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
        token = draw(SampleRequest(asked.params, tokens, num_prompt_tokens, len(tokens)), tokens, tokens[-WINDOW:])
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
        self.refused: dict[str, Refusal] = {}

    def take(self, output: StepOutput) -> None:
        for request_id, token_id in zip(output.request_ids, output.token_ids, strict=True):
            assert request_id not in self.finished, "a token after the end"
            self.tokens.setdefault(request_id, []).append(token_id)
        for request_id, (reason, message) in output.finished.items():
            assert request_id not in self.finished, "finished twice"
            self.finished[request_id] = reason
            self.messages[request_id] = message
        self.refused |= output.refused


def run_all(engine: Engine, gathered: Gathered | None = None) -> Gathered:
    gathered = gathered or Gathered()
    for _ in range(10_000):
        if not engine.has_requests:
            gathered.take(engine.step())
            engine.check_integrity()
            return gathered
        gathered.take(engine.step())
    raise AssertionError("the engine does not come to an end")


def check_partition(engine: Engine) -> None:
    """What `check_integrity` leaves out, since it would take too long: no page and no snapshot is in two places."""
    kv, cache = engine._kv, engine._kv._cache
    pages = [*kv._free_blocks, *kv._idle_blocks, *kv._num_holders]
    assert sorted(pages) == list(range(kv.num_blocks))
    if cache is None:
        return
    running = [request.kv for request in engine._scheduler._running if request.kv]
    saved = [snapshot for handle in running for _, snapshot in handle.saved]
    assert sorted([*cache._free_snapshots, *cache._snapshots.values(), *saved]) == list(range(cache.num_snapshots))
    assert all(cache._pages[name] == page for page, name in cache._hashes.items())
    assert set(kv._idle_blocks) == {page for page in cache._hashes if page not in kv._num_holders}
