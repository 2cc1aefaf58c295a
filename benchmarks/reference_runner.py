"""Speed of the reference runner alone: decode steps at several batch sizes and contexts, and prefill.

usage: PYTHONPATH=workers:kernels:vocabulary:. python benchmarks/reference_runner.py [--model demo|random|PATH]
       [--note TEXT]

`random` is a random checkpoint of the demo model's size. One JSON line a point: ms a step (median, least, 95th
percentile) and tokens a second. With a note, the lines are added to benchmarks/results/reference_runner.jsonl.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from results import append, environment
from tests.support.checkpoints import Shape, write_checkpoint

from chorus_workers.runner.base import Batch, Runner, SampleRequest, SequenceChunk
from chorus_workers.runner.config import RunnerConfig
from chorus_workers.runner.factory import create_runner
from chorus_workers.sampling_params import SamplingParams

RANDOM_SHAPE = Shape(
    num_layers=6,
    num_experts=8,
    num_experts_per_token=4,
    hidden_size=192,
    intermediate_size=192,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=201088,
    vocabulary_rows=(-1, *range(4000)),
)
BLOCK_SIZE = 16


def chunk(
    slot: int, start: int, token_ids: list[int], table: list[int], params: SamplingParams | None
) -> SequenceChunk:
    known = [1] * (start + len(token_ids))
    sample = SampleRequest(params, known, num_prompt_tokens=1, position=len(known)) if params else None
    return SequenceChunk(f"request-{slot}", slot, start, token_ids, table, sample)


def time_steps(runner: Runner, batch: Batch, num_steps: int) -> list[float]:
    """Milliseconds of each step. The same step again and again: what it writes is what was there."""
    times = []
    for _ in range(num_steps + 3):
        begin = time.perf_counter()
        runner.run(batch)
        times.append((time.perf_counter() - begin) * 1e3)
    return times[3:]


def decode(runner: Runner, num_sequences: int, context: int, params: SamplingParams, num_steps: int) -> list[float]:
    per_sequence = -(-(context + 1) // BLOCK_SIZE)
    tables = [list(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(num_sequences)]
    for slot, table in enumerate(tables):
        for start in range(0, context, 512):
            runner.run(Batch([chunk(slot, start, [5] * min(512, context - start), table, None)]))
    batch = Batch([chunk(slot, context, [7], table, params) for slot, table in enumerate(tables)])
    return time_steps(runner, batch, num_steps)


def report(point: dict[str, Any], times: list[float], num_tokens: int, options: argparse.Namespace) -> None:
    times.sort()
    median = statistics.median(times)
    row = point | {
        "model": options.model,
        "threads": options.threads,
        "ms_median": round(median, 3),
        "ms_least": round(times[0], 3),
        "ms_p95": round(times[int(len(times) * 0.95)], 3),
        "tokens_per_s": round(num_tokens * 1e3 / median, 1),
    }
    print(json.dumps(row), flush=True)
    if options.note:
        append("reference_runner", environment() | row | {"note": options.note})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--note")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_checkpoint(Path(folder), RANDOM_SHAPE)) if options.model == "random" else options.model
        config = RunnerConfig(path, 4096, BLOCK_SIZE, 4096, 32, 512, num_threads=options.threads)
        runner = create_runner(config)
        greedy, random = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=3)
        for num_sequences, context, params in (
            (1, 100, greedy),
            (1, 1000, greedy),
            (1, 4000, greedy),
            (1, 100, random),
            (4, 500, greedy),
            (8, 500, greedy),
            (32, 500, greedy),
            (32, 500, random),
            (32, 1900, greedy),
        ):
            times = decode(runner, num_sequences, context, params, options.steps)
            point = {"kind": "decode", "sequences": num_sequences, "context": context}
            report(point | {"temperature": params.temperature}, times, num_sequences, options)
        for start in (0, 3584):
            table = list(range(256))
            times = time_steps(runner, Batch([chunk(0, start, [5] * 512, table, greedy)]), options.steps // 4)
            report({"kind": "prefill", "tokens": 512, "context": start}, times, 512, options)


if __name__ == "__main__":
    main()
