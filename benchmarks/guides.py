"""What guides cost: time per output token with none, with headers held to harmony, and with bodies held to a schema.

usage: PYTHONPATH=cluster:workers:kernels:vocabulary:. python -m benchmarks.guides --model DIR [--runner triton]
       [--points JSON] [--repeats N] [--note N]

A point is [batch size, input tokens, output tokens], all of one engine: so many requests of random tokens arrive at
once and have so many tokens drawn at temperature 1. The kinds of guides take turns, and a ratio is the median over
turns of a kind's decode time beside the time of the one without. "schema" is an array of objects without an end, whose
masks are computed anew for each token. `mask_us` is the host's time for one step's masks, the median.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence

from benchmarks.engine import generate
from benchmarks.results import append, environment

from chorus_cluster.harmony import headers
from chorus_vocabulary import END, STOP_TOKEN_IDS
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.output import StepOutput
from chorus_workers.guide.columns import TokenMask
from chorus_workers.guide.guide import Guide
from chorus_workers.guide.spec import Grammar, GrammarKind, GuidedMessage, GuideSpec
from chorus_workers.runner.config import RunnerConfig
from chorus_workers.runner.factory import create_runner

_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "count": {"type": "integer", "minimum": 0},
        "price": {"type": "number"},
    },
    "required": ["name", "tags", "count", "price"],
    "additionalProperties": False,
}
_GRAMMAR = Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "array", "items": _RECORD, "minItems": 1000000}))
# Any of these may end a body, as a model that is given random tokens would often have it, and none ends a request.
_ENDS = frozenset({END, *STOP_TOKEN_IDS})
_ANSWER = GuidedMessage(headers.final_headers(is_constrained=False)[0], _ENDS)
_REASONING = GuidedMessage(headers.analysis_header(), _ENDS, is_reasoning=True)
KINDS: dict[str, GuideSpec | None] = {
    "none": None,
    "headers": GuideSpec(headers.opening(), (_REASONING, _ANSWER)),
    "schema": GuideSpec(headers.opening(), (GuidedMessage(_ANSWER.header, _ANSWER.end_token_ids, _GRAMMAR),)),
}


class MaskClock:
    """Measures what an engine's masks take."""

    def __init__(self, engine: Engine) -> None:
        self._mask, self._step = engine.guides.mask, engine.step
        # Of this step so far, and of those before.
        self._spent = 0.0
        self.seconds: list[float] = []
        engine.guides.mask = self._measured  # type: ignore[method-assign]
        engine.step = self._stepped  # type: ignore[method-assign]

    def _measured(self, guide: Guide) -> TokenMask | None:
        begin = time.perf_counter()
        try:
            return self._mask(guide)
        finally:
            self._spent += time.perf_counter() - begin

    def _stepped(self) -> StepOutput:
        output = self._step()
        if self._spent:
            self.seconds.append(self._spent)
            self._spent = 0.0
        return output

    def take_median_us(self) -> float | None:
        seconds, self.seconds = self.seconds, []
        return round(statistics.median(seconds) * 1e6, 1) if seconds else None


def measure(engine: Engine, point: Sequence[int], repeats: int, vocab_size: int) -> dict[str, object]:
    num_requests, num_in, num_out = point
    source, clock = random.Random(0), MaskClock(engine)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    masks: dict[str, float | None] = {}
    for _ in range(repeats + 1):
        for kind, guide in KINDS.items():
            prompts = [[source.randrange(vocab_size) for _ in range(num_in)] for _ in range(num_requests)]
            first = generate(engine, prompts, 1, guide)
            clock.take_median_us()
            times[kind].append((generate(engine, prompts, num_out, guide) - first) / (num_out - 1))
            masks[kind] = clock.take_median_us()
    # The first turn compiles.
    kept = {kind: seconds[1:] for kind, seconds in times.items()}
    row: dict[str, object] = {"bs": num_requests, "isl": num_in, "osl": num_out}
    for kind, seconds in kept.items():
        ratios = [mine / free for mine, free in zip(seconds, kept["none"], strict=True)]
        row[kind] = {
            "tpot_ms": round(statistics.median(seconds) * 1e3, 3),
            "ratio": round(statistics.median(ratios), 3),
            "mask_us": masks[kind],
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's folder, or demo")
    parser.add_argument("--runner", choices=("reference", "triton"), default="reference")
    parser.add_argument("--points", type=json.loads, default=[[1, 64, 128], [32, 64, 128]])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--note", help="what is special about this run; keeps its lines")
    options = parser.parse_args()
    num_slots = max(point[0] for point in options.points)
    config = RunnerConfig(
        model=options.model,
        max_model_len=max(num_in + num_out for _, num_in, num_out in options.points),
        block_size=16,
        num_blocks=None,
        num_slots=num_slots,
        max_batched_tokens=max(8192, num_slots),
        prefix_cache=False,
        runner=options.runner,
    )
    runner = create_runner(config)
    for point in options.points:
        engine = Engine(runner, max_queued_requests=num_slots, clock=time.monotonic, prefix_cache=False)
        engine.guides.load()
        row = {"model": options.model, "runner": options.runner}
        row |= measure(engine, point, options.repeats, runner.info.vocab_size)
        print(json.dumps(row), flush=True)
        if options.note is not None:
            append("guides", environment() | {"note": options.note} | row)
        engine.guides.close()
    runner.close()


if __name__ == "__main__":
    sys.exit(main())
