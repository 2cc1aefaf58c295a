"""What a stream may still try when a worker refuses it or is lost."""

from dataclasses import dataclass

from chorus_cluster.errors import ChorusError, Overloaded, Unavailable

# Workers that are asked for room before the client hears that there is none.
_MAX_OVERLOADED = 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Workers that a stream may lose, or be refused by before its first token; how long it waits after a refusal
    (doubled each time); and how long in all, once its client has tokens."""

    max_attempts: int
    backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    patience_s: float = 30.0


class Retries:
    """One stream's account of attempts that failed."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._num_lost = 0
        self._num_refused = 0
        self._waited_s = 0.0

    def after_loss(self) -> None:
        """Errors: Unavailable when too many workers were lost."""
        self._num_lost += 1
        if self._num_lost >= self._policy.max_attempts:
            raise Unavailable("The workers that this request was sent to have failed.")

    def after_refusal(self, error: ChorusError, *, has_tokens: bool) -> float:
        """Seconds to wait before the next attempt.

        Errors: the given one, if there is to be no other attempt.
        """
        self._num_refused += 1
        if not isinstance(error, Overloaded | Unavailable):
            raise error
        if has_tokens:
            # The client can't be told to come back any more.
            return self._wait(error)
        if isinstance(error, Overloaded):
            if self._num_refused >= _MAX_OVERLOADED:
                raise error
            return 0.0
        if self._num_refused >= self._policy.max_attempts:
            raise error
        return self._wait(error)

    def _wait(self, error: ChorusError) -> float:
        seconds = min(self._policy.backoff_s * 2.0 ** (self._num_refused - 1), self._policy.max_backoff_s)
        if self._waited_s + seconds > self._policy.patience_s:
            raise error
        self._waited_s += seconds
        return seconds
