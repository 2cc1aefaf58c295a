"""Time to a prompt's first token, in the engine alone, by what the prefix cache holds of it.

usage: PYTHONPATH=workers:kernels:vocabulary:. python benchmarks/prefix_cache.py [--tokens N] [--repeats N]
       [--note TEXT]

For the demo model: a prompt that is new (with and without a prefix cache), the same one again, and one that shares all
but its last hundred tokens with others. One JSON line a point: ms (median and least). With a note, the lines are added
to benchmarks/results/prefix_cache.jsonl.
"""

import argparse
import json
import random
import statistics
import time

from results import append, environment

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import GenerationRequest
from chorus_workers.runner.config import DEMO_MODEL, RunnerConfig
from chorus_workers.runner.factory import create_runner
from chorus_workers.sampling_params import SamplingParams

OWN_TOKENS = 100
# Tokens that the demo model's compact vocabulary knows, and others: to it all are alike in cost.
VOCAB_SIZE = 4000


class Clocked:
    """An engine that is asked for one token after the other."""

    def __init__(self, *, prefix_cache: bool) -> None:
        config = RunnerConfig(DEMO_MODEL, None, 16, None, 32, 512, prefix_cache=prefix_cache)
        runner = create_runner(config)
        self._engine = Engine(runner, max_queued_requests=8, clock=time.monotonic, prefix_cache=prefix_cache)
        self._count = 0

    def ask(self, prompt: list[int]) -> tuple[float, int]:
        """Milliseconds to the first token, and how many tokens were cached."""
        self._count += 1
        request = GenerationRequest(f"{self._count}", prompt, SamplingParams(temperature=0.0), max_tokens=1)
        num_cached = 0
        begin = time.perf_counter()
        self._engine.add(request)
        while self._engine.has_requests:
            output = self._engine.step()
            num_cached += sum(cached for _, cached in output.started.values())
        return (time.perf_counter() - begin) * 1e3, num_cached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--note")
    options = parser.parse_args()
    dice = random.Random(1)

    def draw(count: int) -> list[int]:
        return [dice.randrange(VOCAB_SIZE) for _ in range(count)]

    without, engine = Clocked(prefix_cache=False), Clocked(prefix_cache=True)
    points: dict[str, list[tuple[float, int]]] = {"new, no cache": [], "new": [], "again": [], "shared beginning": []}
    for repeat in range(options.repeats + 1):
        prompt = draw(options.tokens)
        begin = prompt[: options.tokens - OWN_TOKENS]
        timed = [without.ask(prompt), engine.ask(prompt), engine.ask(prompt)]
        # The second of its kind leaves a snapshot where they part.
        engine.ask([*begin, *draw(OWN_TOKENS)])
        timed.append(engine.ask([*begin, *draw(OWN_TOKENS)]))
        if repeat:
            for name, times in zip(points, timed, strict=True):
                points[name].append(times)
    for name, measured in points.items():
        row: dict[str, object] = {
            "prompt": name,
            "tokens": options.tokens,
            "cached": measured[0][1],
            "ms_median": round(statistics.median(ms for ms, _ in measured), 2),
            "ms_least": round(min(ms for ms, _ in measured), 2),
        }
        print(json.dumps(row), flush=True)
        if options.note:
            append("prefix_cache", environment() | row | {"note": options.note})


if __name__ == "__main__":
    main()
