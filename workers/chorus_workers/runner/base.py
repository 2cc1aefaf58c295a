"""What the engine knows of a runner: one batch in, the sampled tokens out.

A runner owns the weights, the KV memory and the sampler. It is told where to read and write: each request has a *slot*
(its ring of window-layer KV, and nothing else, is addressed by it) and a *block table* (its pages of full-attention
KV). A runner keeps no other state about a request: a step's batch says everything it needs.

A runner may *overlap*: `launch` hands a step to the device and returns, and the next one is launched before the first
is done. The device works on steps in the order of their launch, each on the memory that the one before it left. So the
engine may give memory to another request while a step is under way that uses it. What a step draws, it is told by
`draw`, when the tokens of the step before are known: while the device computes the logits, the host has time to see
what may follow these tokens.

A ring moves on and forgets. So that a later request can begin in the middle of what an earlier one computed, a runner
also owns *snapshots*, numbered buffers that hold a whole ring each, and is told when to save and restore one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chorus_workers.guide.columns import TokenMask
from chorus_workers.sampling_params import SamplingParams

# As a token id: the token that the step launched just before this one draws for the chunk's slot, which only the device
# knows yet. The one token of a chunk that decodes, never another. Logits that are not finite draw any token that the
# vocabulary has.
PENDING_TOKEN = -1


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
    # Whether logits are the same bits whatever else is in a step; if so, a token that was generated must be computed
    # again as it was the first time, alone in its chunk.
    batch_invariant: bool = False


# The next three are not frozen, though nobody changes them: a step makes hundreds, and frozen ones take four times as
# long to make.
@dataclass(slots=True)
class SampleRequest:
    """Ask for a token after a chunk's last position."""

    params: SamplingParams
    # Prompt and generated tokens that are known, in order. Grows when the engine gets to know more: at the `draw` it
    # has all that come before `position`.
    all_token_ids: Sequence[int]
    num_prompt_tokens: int
    # Of the token to be drawn: how many come before it, known or pending.
    position: int
    # What may be drawn; None: anything. Set before the `draw`.
    mask: TokenMask | None = None


@dataclass(slots=True)
class SequenceChunk:
    """The next tokens of one request: those at positions start, start + 1, ..."""

    request_id: str
    slot: int
    start: int
    token_ids: Sequence[int]
    # Pages of full-attention KV, in order; they hold at least start + len(token_ids) positions. To be read before
    # `launch` returns, too. A list that an earlier chunk had, too, has only grown since then.
    block_table: Sequence[int]
    # None while the chunk doesn't reach the last token.
    sample: SampleRequest | None
    # The snapshot that the slot's ring is filled from before anything of the batch is computed or saved. None: the ring
    # goes on as it is.
    restore: int | None = None
    # (position, snapshot): the snapshot must get the ring as it is when position - 1 has been computed and position has
    # not. start < position <= start + len(token_ids), in order; never where the chunk is one token and a sample.
    saves: Sequence[tuple[int, int]] = ()
    # Whether the one token was generated, and its KV has been there before.
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. Decode chunks (one token) and prefill chunks may be mixed; no request appears twice."""

    chunks: Sequence[SequenceChunk]

    @property
    def samples(self) -> list[SampleRequest]:
        """What is asked for, in the chunks' order."""
        return [chunk.sample for chunk in self.chunks if chunk.sample is not None]


@dataclass(slots=True)
class SampledToken:
    """A drawn token. Log probabilities are natural logarithms of the distribution after bias and penalties, before
    temperature and truncation, whatever a mask forbids; `top` is ordered from the most likely down, and holds
    `num_top_logprobs` entries."""

    token_id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    # The logits were not finite, or nothing was allowed: the request must end, alone; token_id means nothing.
    failed: bool = False
    # Whether the mask forbade a token that was likelier than all that it allowed.
    overruled: bool = False


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


class PendingStep(Protocol):
    """A step that was launched."""

    def draw(self) -> None:
        """Begins to draw what the step asks for: once, after the step before has given its result.

        Errors: RunnerError; the engine can't go on then.
        """
        ...

    def result(self) -> StepResult:
        """Waits until the step is done. To be called once, after `draw`, in the order of launches.

        Errors: RunnerError when the device is lost; the engine can't go on then.
        """
        ...


class DeferredStep:
    """The `PendingStep` of a runner that doesn't overlap: all is computed at the draw."""

    def __init__(self, runner: "Runner", batch: Batch) -> None:
        self._runner, self._batch = runner, batch
        self._step_result: StepResult | None = None

    def draw(self) -> None:
        self._step_result = self._runner.run(self._batch)

    def result(self) -> StepResult:
        assert self._step_result is not None
        return self._step_result


class Runner(ABC):
    """Runs the model on batches. Not thread-safe: the engine's loop is its only caller."""

    @property
    @abstractmethod
    def info(self) -> RunnerInfo: ...

    @property
    def token_ids(self) -> Sequence[int] | None:
        """The token that each column of the logits stands for; None: column i is token i."""
        return None

    @property
    def overlaps(self) -> bool:
        """Whether `launch` returns before the step is done, so that it pays to launch the next one meanwhile. There are
        never more than two: the first one's result is asked for before a third is launched."""
        return False

    @abstractmethod
    def run(self, batch: Batch) -> StepResult:
        """Restores rings, computes the chunks, writes their KV, saves rings, and samples where asked.

        Errors: RunnerError when the device or another shard is lost; the engine can't go on then.
        """

    def launch(self, batch: Batch) -> PendingStep:
        """Begins what `run` does, up to the logits. Only runners that overlap get batches with PENDING_TOKEN. Errors:
        as `run`'s."""
        return DeferredStep(self, batch)

    @abstractmethod
    def close(self) -> None:
        """Ends the runner; a step whose result nobody asked for may still be under way."""


class RunnerError(Exception):
    """The runner can't compute any more; every request of its engine must move to another worker."""
