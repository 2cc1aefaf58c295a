"""How much prefill a step may have beside decode, so that answers keep coming while prompts are read."""

import sys

_SMOOTHING = 0.2
# However long steps take, prompts go on by this much in each. Steps with less say little of what a token takes.
_LEAST_TOKENS = 64


class PrefillBudget:
    """Keeps steps within a time, by what they took lately: one is taken to last as long as decode alone, and longer in
    proportion to its tokens of prefill."""

    def __init__(self, step_budget_s: float | None) -> None:
        """None: no limit."""
        self._step_budget_s = step_budget_s
        self._decode_s: float | None = None
        self._token_s: float | None = None

    def observe(self, num_decode_tokens: int, num_prefill_tokens: int, seconds: float) -> None:
        """Learns from a step."""
        if num_prefill_tokens == 0:
            self._decode_s = _smoothed(self._decode_s, seconds)
        elif num_prefill_tokens >= _LEAST_TOKENS:
            decode_s = (self._decode_s or 0.0) if num_decode_tokens else 0.0
            self._token_s = _smoothed(self._token_s, max(seconds - decode_s, 0.0) / num_prefill_tokens)

    def num_tokens(self) -> int:
        """Most tokens of prefill for a step that has decode too."""
        if self._step_budget_s is None:
            return sys.maxsize
        if not self._token_s:
            return _LEAST_TOKENS
        return max(int((self._step_budget_s - (self._decode_s or 0.0)) / self._token_s), _LEAST_TOKENS)


def _smoothed(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _SMOOTHING * (value - mean)
