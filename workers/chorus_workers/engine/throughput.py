"""How fast the engine computes, and what follows for a client that must come again."""

_SMOOTHING = 0.1
_RETRY_AFTER_RANGE_S = (0.1, 60.0)
# What a refused client is told while no throughput has been seen.
_DEFAULT_RETRY_AFTER_S = 1.0


class Throughput:
    """A smoothed rate of tokens per second."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        if seconds > 0:
            smoothing = _SMOOTHING if self._tokens_per_s else 1.0
            self._tokens_per_s += smoothing * (num_tokens / seconds - self._tokens_per_s)

    def estimate_retry_after(self, num_outstanding_tokens: int, num_requests: int) -> float:
        """Seconds until one of `num_requests` is likely to make room: the mean time between two requests' ends, at the
        present rate."""
        if not self._tokens_per_s:
            return _DEFAULT_RETRY_AFTER_S
        least, most = _RETRY_AFTER_RANGE_S
        return min(max(num_outstanding_tokens / self._tokens_per_s / num_requests, least), most)
