"""Speed of one engine without a cluster around it: time per output token, throughput, prefill.

usage: PYTHONPATH=workers:kernels:vocabulary:. python -m benchmarks.engine --model DIR [--runner triton] [--points JSON]
       [--kv-cache-dtype fp8_e4m3] [--note N]

A point is [batch size, input tokens, output tokens]: so many requests of random tokens arrive at once, and are drawn
from at temperature 1 until each has its output. A point is repeated until two passes agree within 2% (six at most, as
first ones compile), and the fastest counts; so is the same point with one output token, which gives the time to the
first token of all. One JSON line a point, with the fields that benchmarks/peer.md explains. With a note, the lines are
added to benchmarks/results/engine.jsonl.
"""

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.results import append, environment

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import GenerationRequest
from chorus_workers.guide.spec import GuideSpec
from chorus_workers.runner.config import RunnerConfig
from chorus_workers.runner.factory import create_runner
from chorus_workers.sampling_params import SamplingParams

POINTS = (
    (1, 128, 256),
    (1, 8192, 128),
    (2, 1024, 256),
    (4, 1024, 256),
    (8, 1024, 256),
    (16, 1024, 256),
    (32, 1024, 256),
    (64, 1024, 256),
    (128, 1024, 512),
    (256, 1024, 512),
)
AGREEMENT = 1.02
MAX_PASSES = 6
Point = Sequence[int]


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int, guide: GuideSpec | None = None
) -> float:
    """Seconds until every prompt has its tokens. Errors: RuntimeError, if one has not."""
    begin = time.perf_counter()
    for index, prompt in enumerate(prompts):
        params = SamplingParams(temperature=1.0, seed=index)
        engine.add(GenerationRequest(str(index), prompt, params, num_tokens, guide=guide))
    while engine.guides.num_waiting and not engine.guides.has_news:
        time.sleep(0.001)
    num_drawn = 0
    while engine.has_requests:
        output = engine.step()
        num_drawn += len(output.token_ids)
        for refusal in output.refused.values():
            raise RuntimeError(f"refused: {refusal.message}")
    seconds = time.perf_counter() - begin
    if num_drawn != len(prompts) * num_tokens:
        raise RuntimeError(f"{num_drawn} tokens were drawn, not {len(prompts)} times {num_tokens}")
    return seconds


def settled(measure: Callable[[], float]) -> float:
    """The least of passes, once two agree."""
    times: list[float] = []
    while len(times) < MAX_PASSES:
        times.append(measure())
        if len(times) > 1 and sorted(times)[1] < AGREEMENT * min(times):
            break
    return min(times)


def measure(engine: Engine, point: Point, vocab_size: int, source: random.Random) -> dict[str, object]:
    num_requests, num_in, num_out = point

    def one_pass(num_tokens: int) -> float:
        prompts = [[source.randrange(vocab_size) for _ in range(num_in)] for _ in range(num_requests)]
        return generate(engine, prompts, num_tokens)

    total, first = settled(lambda: one_pass(num_out)), settled(lambda: one_pass(1))
    decode = max(total - first, 1e-9)
    return {
        "bs": num_requests,
        "isl": num_in,
        "osl": num_out,
        "total_s": round(total, 3),
        "ttft_all_s": round(first, 3),
        "tpot_ms": round(decode / max(num_out - 1, 1) * 1e3, 3),
        "out_tok_s": round(num_requests * num_out / total, 1),
        "decode_tok_s": round(num_requests * (num_out - 1) / decode, 1),
        "prefill_tok_s": round(num_requests * num_in / first, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's folder, or demo")
    parser.add_argument("--runner", choices=("reference", "triton"), default="reference")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8_e4m3"), default="auto")
    parser.add_argument("--points", type=json.loads, default=POINTS, help="[[batch size, input, output], ...]")
    parser.add_argument("--max-batched-tokens", type=int, default=8192)
    parser.add_argument("--note", help="what is special about this run; keeps its lines")
    options = parser.parse_args()
    num_slots = max(point[0] for point in options.points)
    config = RunnerConfig(
        model=options.model,
        max_model_len=max(num_in + num_out for _, num_in, num_out in options.points),
        block_size=16,
        num_blocks=None,
        num_slots=num_slots,
        max_batched_tokens=max(options.max_batched_tokens, num_slots),
        prefix_cache=False,
        runner=options.runner,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    # What the start took, to standard error.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    begin = time.perf_counter()
    runner = create_runner(config)
    engine = Engine(runner, max_queued_requests=0, clock=time.monotonic, prefix_cache=False)
    known = {"model": options.model, "runner": options.runner}
    if options.kv_cache_dtype != "auto":
        known["kv_cache_dtype"] = options.kv_cache_dtype
    print(json.dumps(known | {"startup_s": round(time.perf_counter() - begin, 1)}), flush=True)
    source = random.Random(0)
    try:
        for point in options.points:
            row = known | measure(engine, point, runner.info.vocab_size, source)
            print(json.dumps(row), flush=True)
            if options.note is not None:
                append("engine", environment() | {"note": options.note} | row)
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
