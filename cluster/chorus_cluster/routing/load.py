"""How much work each worker has, as one gateway sees it.

Two sources are joined. What this gateway sent itself is known exactly and at once, so a burst spreads out although no
report has come yet. What others sent shows only in the workers' reports, half a second old: the part of a report that
our own requests don't explain is taken to be theirs.

Amounts are tokens: those of the prompt, and those that the answer is expected to have. Pure state; no clock, no I/O.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass

# Requests whose workers are remembered, so that a retry avoids them; the oldest are forgotten first.
_MAX_REMEMBERED = 4096


@dataclass(slots=True)
class _Worker:
    # Cost of our requests that are on it, and its peak since the last report.
    own: int = 0
    own_peak: int = 0
    # What others have on it.
    others: int = 0
    reported: int | None = None
    # Grows with each assignment: breaks ties in favour of the worker that has waited longest.
    last_assigned: float = 0.0


@dataclass(frozen=True, slots=True)
class _Charge:
    worker: str
    tokens: int


class LoadLedger:
    """Outstanding tokens of the workers of one deployment. Workers and calls are named by their ids."""

    def __init__(self, tie_breaker: random.Random) -> None:
        self._random = tie_breaker
        self._workers: dict[str, _Worker] = {}
        self._charges: dict[str, _Charge] = {}
        self._num_assigned = 0
        self._tried: OrderedDict[str, set[str]] = OrderedDict()

    def rank(self, workers: list[str], request_id: str | None) -> list[str]:
        """The workers, best first: least outstanding tokens, and those last that had this very request before."""
        tried = self._tried.get(request_id, set()) if request_id is not None else set()

        def key(name: str) -> tuple[bool, int, float]:
            worker = self._worker(name)
            return name in tried, worker.own + worker.others, worker.last_assigned

        return sorted(workers, key=key)

    def assign(self, call_id: str, worker: str, tokens: int) -> None:
        """Books a call on a worker; a call that was booked elsewhere moves."""
        self.drop(call_id)
        self._charges[call_id] = _Charge(worker, tokens)
        state = self._worker(worker)
        state.own += tokens
        state.own_peak = max(state.own_peak, state.own)
        self._num_assigned += 1
        state.last_assigned = float(self._num_assigned)

    def move(self, call_id: str, worker: str) -> None:
        """The call went to another worker than the one it was booked on."""
        charge = self._charges.get(call_id)
        if charge is not None and charge.worker != worker:
            self.assign(call_id, worker, charge.tokens)

    def drop(self, call_id: str, worker: str | None = None) -> None:
        """The call is over (on this worker, if one is named). Calls that aren't booked are ignored."""
        charge = self._charges.get(call_id)
        if charge is None or (worker is not None and charge.worker != worker):
            return
        del self._charges[call_id]
        if charge.worker in self._workers:
            self._workers[charge.worker].own -= charge.tokens

    def remember(self, request_id: str, worker: str) -> None:
        """The request was sent to this worker: another attempt should rather go elsewhere."""
        self._tried.setdefault(request_id, set()).add(worker)
        self._tried.move_to_end(request_id)
        if len(self._tried) > _MAX_REMEMBERED:
            self._tried.popitem(last=False)

    def report(self, worker: str, outstanding_tokens: int) -> None:
        """Takes a worker's own count of the tokens that everything on it still needs."""
        state = self._worker(worker)
        if outstanding_tokens == state.reported:
            return
        state.reported = outstanding_tokens
        # The report is from before now: compare it with the most that we had there meanwhile.
        state.others = max(0, outstanding_tokens - state.own_peak)
        state.own_peak = state.own

    def keep_only(self, workers: set[str]) -> None:
        """Forgets workers that are gone, and what was booked on them."""
        self._workers = {name: state for name, state in self._workers.items() if name in workers}
        self._charges = {call: charge for call, charge in self._charges.items() if charge.worker in workers}

    def outstanding_tokens(self, worker: str) -> int:
        state = self._worker(worker)
        return state.own + state.others

    def _worker(self, name: str) -> _Worker:
        state = self._workers.get(name)
        if state is None:
            # A random start below every assignment's number: idle gateways don't all begin with the same worker.
            state = self._workers[name] = _Worker(last_assigned=self._random.random())
        return state
