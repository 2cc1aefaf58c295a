"""How the next token of a request is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Checked sampling parameters; the fields mean what `chorus.v1.SamplingParams` says, with its defaults filled in.

    `seed` is always set: whoever makes the request draws one where the client gave none, so that a request that moves
    to another worker goes on with the same random numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: frozenset[int] = frozenset()
    num_top_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0 or self.repetition_penalty != 1.0
