"""A runner without a model: it steps at a fixed interval and draws scripted tokens. For tests and benchmarks."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from zlib import crc32

from chorus_workers.config import FAKE_MODEL_PREFIX
from chorus_workers.runner.base import Batch, Runner, RunnerError, RunnerInfo, SampledToken, SampleRequest, StepResult

# The host may take this share of a step without delaying the next one.
_HOST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class FakeModel:
    """What a FakeRunner draws.

    With a script, a request's generated tokens are `prefix`, then `body` again and again; if `num_tokens` is given,
    the token of that number is `stop`, else the request runs to its limit. Without one (`body` is None), each token is
    a function of the seed, the position and the token before.
    """

    step_time_s: float = 0.005
    vocab_size: int = 201088
    max_model_len: int = 131072
    prefix: tuple[int, ...] = ()
    body: int | None = None
    stop: int = 200002
    num_tokens: int | None = None
    # The step of this number, counted from 1, fails as a lost device would.
    fail_at_step: int | None = None

    @classmethod
    def from_config(cls, model: str) -> "FakeModel":
        """Reads "fake:{json}". Errors: ValueError naming what is wrong."""
        try:
            values = json.loads(model.removeprefix(FAKE_MODEL_PREFIX) or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"model: what follows {FAKE_MODEL_PREFIX!r} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"model: what follows {FAKE_MODEL_PREFIX!r} must be a JSON object")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"model: a fake model has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        if "prefix" in values:
            values["prefix"] = tuple(values["prefix"])
        return cls(**values)

    def to_config(self) -> str:
        """The WorkerConfig.model that gives this."""
        return FAKE_MODEL_PREFIX + json.dumps(asdict(self))


class FakeRunner(Runner):
    """Takes `step_time_s` for each step, counted from the end of the last one when steps follow close on each other."""

    def __init__(
        self,
        model: FakeModel,
        *,
        max_model_len: int | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        num_slots: int = 32,
        max_batched_tokens: int = 512,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`num_blocks` None: enough for `num_slots` requests of 4096 tokens, and for one of the greatest length."""
        self._model = model
        self._clock = clock
        self._sleep = sleep
        self._last_end = 0.0
        self._num_steps = 0
        model_len = min(max_model_len or model.max_model_len, model.max_model_len)
        self._info = RunnerInfo(
            vocab_size=model.vocab_size,
            max_model_len=model_len,
            block_size=block_size,
            num_blocks=num_blocks or -(-max(num_slots * min(4096, model_len), model_len) // block_size),
            num_slots=num_slots,
            max_batched_tokens=max_batched_tokens,
            num_shards=1,
            has_window_layers=False,
        )

    @property
    def info(self) -> RunnerInfo:
        return self._info

    def run(self, batch: Batch) -> StepResult:
        self._num_steps += 1
        if self._num_steps == self._model.fail_at_step:
            raise RunnerError("the fake device is lost")
        sampled = [None if chunk.sample is None else self._sample(chunk.sample) for chunk in batch.chunks]
        now = self._clock()
        # Steps in a row keep their interval, as on a device that works on while the host prepares the next step; after
        # a pause a step is a whole one.
        in_a_row = now - self._last_end < _HOST_SHARE * self._model.step_time_s
        self._last_end = (self._last_end if in_a_row else now) + self._model.step_time_s
        self._sleep(self._last_end - now)
        return StepResult(sampled)

    def close(self) -> None:
        """Nothing to give back."""

    def _sample(self, sample: SampleRequest) -> SampledToken:
        token_id = self._draw(sample)
        overruled = token_id != self._scripted(sample)
        if sample.params.num_top_logprobs is None:
            return SampledToken(token_id, overruled=overruled)
        vocab_size = self._model.vocab_size
        top = [((token_id + i) % vocab_size, -0.5 - i) for i in range(sample.params.num_top_logprobs)]
        return SampledToken(token_id, logprob=-0.5, top=top, overruled=overruled)

    def _draw(self, sample: SampleRequest) -> int:
        """What the script says; where a mask forbids that, the first token that it allows."""
        token_id = self._scripted(sample)
        if sample.mask is None or sample.mask[token_id >> 5] >> (token_id & 31) & 1:
            return token_id
        word = int(sample.mask.nonzero()[0][0])
        bits = int(sample.mask[word]) & 0xFFFFFFFF
        return word * 32 + (bits & -bits).bit_length() - 1

    def _scripted(self, sample: SampleRequest) -> int:
        model = self._model
        if model.body is None:
            key = f"{sample.params.seed} {sample.position} {sample.all_token_ids[-1]}"
            return crc32(key.encode()) % model.vocab_size
        index = sample.position - sample.num_prompt_tokens
        if index + 1 == model.num_tokens:
            return model.stop
        return model.prefix[index] if index < len(model.prefix) else model.body
