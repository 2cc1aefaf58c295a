"""What the engine knows of a runner: one batch in, the sampled tokens out.

A runner owns the weights, the KV memory and the sampler. It is told where to read and write: each request has a *slot*
(its ring of window-layer KV, and nothing else, is addressed by it) and a *block table* (its pages of full-attention
KV). A runner keeps no other state about a request: a step's batch says everything it needs.

A ring moves on and forgets. So that a later request can begin in the middle of what an earlier one computed, a runner
also owns *snapshots*, numbered buffers that hold a whole ring each, and is told when to save and restore one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from chorus_workers.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a loaded runner can hold. Counts are per engine, not per shard."""

    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    num_slots: int
    max_batched_tokens: int
    num_shards: int
    # Rings of a slot that can be kept beside those in use.
    num_snapshots: int = 0
    # Without window layers a request can begin behind any cached page; with them it takes a snapshot.
    has_window_layers: bool = True


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask for a token after a chunk's last position."""

    params: SamplingParams
    # Prompt and generated tokens so far, in order; len(all_token_ids) is the position of the token to be drawn.
    all_token_ids: Sequence[int]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """The next tokens of one request: those at positions start, start + 1, ..."""

    request_id: str
    slot: int
    start: int
    token_ids: Sequence[int]
    # Pages of full-attention KV, in order; they hold at least start + len(token_ids) positions.
    block_table: Sequence[int]
    # None while the chunk doesn't reach the last known token.
    sample: SampleRequest | None
    # The snapshot that the slot's ring is filled from before anything of the batch is computed or saved. None: the ring
    # goes on as it is.
    restore: int | None = None
    # (position, snapshot): the snapshot must get the ring as it is when position - 1 has been computed and position has
    # not. start < position <= start + len(token_ids), in order; never where the chunk is one token and a sample.
    saves: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. Decode chunks (one token) and prefill chunks may be mixed; no request appears twice."""

    chunks: Sequence[SequenceChunk]

    @property
    def samples(self) -> list[SampleRequest]:
        """What is asked for, in the chunks' order."""
        return [chunk.sample for chunk in self.chunks if chunk.sample is not None]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token. Log probabilities are natural logarithms of the distribution after bias and penalties, before
    temperature and truncation; `top` is ordered from the most likely down, and holds `num_top_logprobs` entries."""

    token_id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    # The logits were not finite: the request must end, alone; token_id means nothing.
    failed: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry for each chunk, in the batch's order; None where no token was asked for."""

    sampled: Sequence[SampledToken | None]

    @classmethod
    def of(cls, batch: Batch, tokens: Sequence[SampledToken]) -> "StepResult":
        """Gives the chunks that asked for a token theirs, in the batch's order."""
        asking = [i for i, chunk in enumerate(batch.chunks) if chunk.sample is not None]
        drawn = dict(zip(asking, tokens, strict=True))
        return cls([drawn.get(i) for i in range(len(batch.chunks))])


class Runner(ABC):
    """Runs the model on batches. Not thread-safe: the engine's loop is its only caller."""

    @property
    @abstractmethod
    def info(self) -> RunnerInfo: ...

    @abstractmethod
    def run(self, batch: Batch) -> StepResult:
        """Restores rings, computes the chunks, writes their KV, saves rings, and samples where asked.

        Errors: RunnerError when the device or another shard is lost; the engine can't go on then.
        """

    @abstractmethod
    def close(self) -> None: ...


class RunnerError(Exception):
    """The runner can't compute any more; every request of its engine must move to another worker."""
