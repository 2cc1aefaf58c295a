"""What the engine tells the world after a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chorus_workers.engine.request import FinishReason, Refusal


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities at one position: of the drawn token, and of the most likely ones in order."""

    logprob: float
    top: Sequence[tuple[int, float]]


@dataclass(slots=True)
class StepOutput:
    """Everything since the last output, for all requests. Parallel lists, since most entries are a bare token."""

    # One entry for each drawn token.
    request_ids: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    # By index into token_ids, for those who asked.
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    # Requests that ran for the first time: (queue time in seconds, prompt tokens found in the prefix cache).
    started: dict[str, tuple[float, int]] = field(default_factory=dict)
    # Requests that ended, after their tokens above: the reason, and for ERROR a message for the client.
    finished: dict[str, tuple[FinishReason, str]] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.request_ids or self.finished or self.refused or self.started)
