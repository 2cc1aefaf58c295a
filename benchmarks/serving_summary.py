"""What a load came to: throughput, latencies, goodput, from the times of its requests."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds of `time.perf_counter`, which on Linux is one clock for all processes."""

    # When it was sent or, at a given rate, was due.
    started_at: float
    # When each read that held events came.
    read_at: tuple[float, ...] = ()
    # When the first text came; 0.0: none did.
    first_text_at: float = 0.0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    finish_reason: str = ""
    # What kind of failure it was; None: it went well.
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.read_at[0] - self.started_at

    @property
    def itl_s(self) -> float:
        """The mean time between two tokens: reads hold several, and how many is nobody's promise."""
        return (self.read_at[-1] - self.read_at[0]) / max(self.num_tokens - 1, 1)


def summarize(records: Sequence[Record], ttft_s: float | None = None, itl_s: float | None = None) -> dict[str, object]:
    """The figures of a load, in ms where a name says so.

    The limits make `goodput`: which share of all requests went well within both, and how many a second.
    """
    done = [record for record in records if record.error is None]
    row: dict[str, object] = {
        "requests": len(records),
        "errors": dict(Counter(record.error for record in records if record.error is not None)),
        "finish_reasons": dict(Counter(record.finish_reason for record in done)),
    }
    if not done:
        return row
    wall_s = wall_of(records)
    good = [r for r in done if (ttft_s is None or r.ttft_s <= ttft_s) and (itl_s is None or r.itl_s <= itl_s)]
    num_tokens = sum(record.num_tokens for record in done)
    return row | {
        "wall_s": round(wall_s, 3),
        "prompt_tokens": sum(record.num_prompt_tokens for record in done),
        "output_tokens": num_tokens,
        "out_tok_s": round(num_tokens / wall_s, 1),
        "requests_per_s": round(len(done) / wall_s, 3),
        "ttft_ms": percentiles_ms(record.ttft_s for record in done),
        "first_text_ms": percentiles_ms(r.first_text_at - r.started_at for r in done if r.first_text_at),
        "itl_ms": percentiles_ms(record.itl_s for record in done if record.num_tokens > 1),
        "gap_ms": percentiles_ms(later - earlier for r in done for earlier, later in pairwise(r.read_at)),
        "goodput": {"share": round(len(good) / len(records), 4), "requests_per_s": round(len(good) / wall_s, 3)},
    }


def wall_of(records: Sequence[Record]) -> float:
    """Seconds from the first request to the last event; infinite, if there was none."""
    ends = [record.read_at[-1] for record in records if record.read_at]
    return max(ends, default=float("inf")) - min(record.started_at for record in records)


def percentiles_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Nearest-rank percentiles; empty of nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    ranks = {percent: -(-percent * len(ordered) // 100) for percent in PERCENTILES}
    return {f"p{percent}": round(1000 * ordered[rank - 1], 2) for percent, rank in ranks.items()}
