"""vLLM's speed on the points of benchmarks/engine.py, offline, in the same fields: one JSON line a point.

usage: python benchmarks/peer_vllm.py --model DIR [--points JSON] [--options JSON]

Runs where vLLM is installed, and needs nothing of Chorus. How to set it up, and what the fields are, says
benchmarks/peer.md.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

POINTS = ((1, 128, 256), (1, 8192, 128), (8, 1024, 256), (32, 1024, 256), (64, 1024, 256), (256, 1024, 512))
OPTIONS = {
    "skip_tokenizer_init": True,
    "max_model_len": 16384,
    "max_num_seqs": 256,
    "gpu_memory_utilization": 0.92,
    "enable_prefix_caching": False,
}
# Ordinary tokens of gpt-oss's vocabulary.
TOKEN_IDS = (1000, 190_000)
AGREEMENT = 1.02
MAX_PASSES = 6


def settled(measure: Callable[[], float]) -> float:
    """The least of passes, once two agree: the first ones compile."""
    times: list[float] = []
    while len(times) < MAX_PASSES:
        times.append(measure())
        if len(times) > 1 and sorted(times)[1] < AGREEMENT * min(times):
            break
    return min(times)


def figures(point: Sequence[int], total: float, first: float) -> dict[str, object]:
    num_requests, num_in, num_out = point
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
    parser.add_argument("--model", required=True, help="a checkpoint's folder")
    parser.add_argument("--points", type=json.loads, default=POINTS, help="[[batch size, input, output], ...]")
    parser.add_argument("--options", type=json.loads, default={}, help="more arguments of vllm.LLM, in JSON")
    arguments = parser.parse_args()
    # vLLM reads these as it is imported. Without nvcc, FlashInfer's sampler can't be compiled.
    os.environ |= {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams, __version__

    begin = time.perf_counter()
    engine = LLM(model=arguments.model, **OPTIONS | arguments.options)
    known = {"model": arguments.model, "runner": f"vllm {__version__}"}
    print(json.dumps(known | {"startup_s": round(time.perf_counter() - begin, 1)}), flush=True)
    source = random.Random(0)

    def one_pass(num_requests: int, num_in: int, num_out: int) -> float:
        prompts = [
            {"prompt_token_ids": [source.randrange(*TOKEN_IDS) for _ in range(num_in)]} for _ in range(num_requests)
        ]
        params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=num_out, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        answers = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        num_drawn = sum(len(answer.outputs[0].token_ids) for answer in answers)
        if num_drawn != num_requests * num_out:
            raise RuntimeError(f"{num_drawn} tokens were drawn, not {num_requests} times {num_out}")
        return seconds

    one_pass(4, 64, 16)
    one_pass(32, 512, 32)
    for point in arguments.points:
        num_requests, num_in, num_out = point
        total = settled(partial(one_pass, num_requests, num_in, num_out))
        first = settled(partial(one_pass, num_requests, num_in, 1))
        print(json.dumps(known | figures(point, total, first)), flush=True)


if __name__ == "__main__":
    main()
