"""A load of streaming chats on a server: throughput, latencies, goodput. One JSON line a repeat.

usage: python -m benchmarks.serving (--url URL | --model DIR) [--streams N] [--requests N] [--isl N] [--osl N] ...

Against any server of OpenAI's API (`--url http://127.0.0.1:8000/v1`), or a `chorus serve` that it starts and ends
(`--model DIR`, or demo; `--set workers.max_num_seqs=256` passes a setting). The load is a closed loop of N streams,
each asking the next question when it has its answer, or (`--rate R`) questions that come at random, R a second, of
which N run at once; those that wait do so on their own time.

Prompts are random words, one token each in gpt-oss's vocabulary. A first question of one word tells what the server's
template adds, and prompts are that much shorter: ISL is exact for gpt-oss, and about right for others; so, the
server's own count is reported. OSL is `max_completion_tokens`. Answers may end before: Chorus, like OpenAI, has no
`ignore_eos`. Random weights nearly never end one; for real ones, pass
`--body '{"logit_bias": {"200002": -100, "200012": -100, "199999": -100}}'`, which any server takes, or vLLM's
`--body '{"ignore_eos": true}'`. `finish_reasons` tells whether it worked.

| field | |
|---|---|
| `out_tok_s` | output tokens by the servers' `usage`, over the time from the first request to the last event |
| `ttft_ms` | to the first event of a stream, which Chorus and vLLM send when they have the first token |
| `first_text_ms` | to the first event with text: harmony's header stands before it |
| `itl_ms` | of requests: from the first event to the last, over their tokens less one |
| `gap_ms` | between two reads of a stream, however many tokens they hold |
| `goodput` | requests within --ttft-ms and --itl-ms: their share of all, and how many a second |
| `errors`, `finish_reasons` | how many requests, by kind |
| `client_cores` | CPU of this program, over the time; one process that nears 1 is a client too slow |
| `cores` | the same of the server's processes by role, if it was started here |

With a note, lines are added to benchmarks/results/serving.jsonl.
"""

import argparse
import contextlib
import json
import os
import random
import re
import sys
import urllib.request
from collections.abc import Iterator

import yaml
from benchmarks.processes import cpu_seconds, find_cluster
from benchmarks.results import append, environment
from benchmarks.server import Server, serve
from benchmarks.serving_client import Target, run_processes
from benchmarks.serving_summary import summarize, wall_of

from chorus_vocabulary.token_table import load_token_table

# What one process can read without being late, on a core that others leave alone.
STREAMS_PER_PROCESS = 64
_WORD = re.compile(rb" [a-z]{2,}")


def words() -> list[str]:
    """Words that are a token each, also next to one another: a space begins them, and the tokenizer cuts there."""
    table = load_token_table()
    tokens = (table.blob[begin:end] for begin, end in zip(table.offsets, table.offsets[1:], strict=False))
    return [token.decode() for token in tokens if _WORD.fullmatch(token)]


def make_prompts(count: int, num_tokens: int, vocabulary: list[str], seed: int) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices(vocabulary, k=max(num_tokens, 1))) for _ in range(count)]


def arrival_times(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start, of a Poisson process."""
    source = random.Random(seed)
    now = 0.0
    return [now := now + source.expovariate(rate) for _ in range(count)]


def with_settings(config: dict[str, dict[str, object]], settings: list[str]) -> dict[str, dict[str, object]]:
    """Puts SECTION.KEY=VALUE into a configuration, values as in YAML."""
    for setting in settings:
        path, _, value = setting.partition("=")
        section, *between, key = path.split(".")
        inner = config.setdefault(section, {})
        for name in between:
            inner = inner.setdefault(name, {})  # type: ignore[assignment]
        inner[key] = yaml.safe_load(value)
    return config


@contextlib.contextmanager
def target_of(options: argparse.Namespace) -> Iterator[tuple[Target, Server | None]]:
    """The server to ask: the one that is there, or one that lives as long as the context."""
    if options.url is not None:
        name = options.name or first_model(options.url, options.api_key)
        yield Target(options.url, name, options.api_key, options.timeout_s), None
        return
    config = with_settings({"model": {"path": options.model}}, options.set)
    with serve(config, options.timeout_s) as server:
        url = f"http://{server.http}/v1"
        yield Target(url, options.name or first_model(url), timeout_s=options.timeout_s), server


def first_model(url: str, api_key: str = "") -> str:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/models", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        name: str = json.load(response)["data"][0]["id"]
        return name


def template_tokens(target: Target, word: str) -> int:
    """What a template adds to a prompt. Errors: RuntimeError, if the server doesn't answer."""
    (record,), _ = run_processes(target, [target.request(word, 16, {})], 1, 1)
    if record.error is not None:
        raise RuntimeError(f"a first question to {target.url} failed: {record.error}")
    return record.num_prompt_tokens - 1


def run_load(
    target: Target, server: Server | None, options: argparse.Namespace, prompts: list[str], seed: int
) -> dict[str, object]:
    requests = [target.request(prompt, options.osl, options.body) for prompt in prompts]
    due_after = None if options.rate is None else arrival_times(len(requests), options.rate, seed)
    num_processes = options.clients or min(-(-options.streams // STREAMS_PER_PROCESS), os.cpu_count() or 1)
    cluster = [] if server is None else find_cluster(server.pid)
    before = cpu_seconds(cluster)
    records, client_s = run_processes(target, requests, options.streams, num_processes, due_after)
    after = cpu_seconds(cluster)
    limits = [None if limit is None else limit / 1000 for limit in (options.ttft_ms, options.itl_ms)]
    row = summarize(records, *limits) | {"clients": num_processes}
    wall_s = wall_of(records)
    row["client_cores"] = round(client_s / wall_s, 2)
    if server is not None:
        row["cores"] = {role: round((after[role] - before[role]) / wall_s, 2) for role in after}
    return row


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server's API, with its prefix: http://127.0.0.1:8000/v1")
    where.add_argument("--model", help="a checkpoint's folder, or demo: starts chorus serve with it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of chorus serve")
    parser.add_argument("--name", help="the model's name; default: the first that the server lists")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--streams", type=int, default=32, help="requests at once")
    parser.add_argument("--requests", type=int, help="in all; default: one for each stream")
    parser.add_argument("--isl", type=int, default=1024, help="input tokens of a request")
    parser.add_argument("--osl", type=int, default=512, help="output tokens of a request, at most")
    parser.add_argument("--rate", type=float, help="requests a second; default: each stream goes on when it can")
    parser.add_argument("--body", type=json.loads, default={}, metavar="JSON", help="more fields of each request")
    parser.add_argument("--ttft-ms", type=float, help="goodput's limit")
    parser.add_argument("--itl-ms", type=float, help="goodput's limit")
    parser.add_argument("--clients", type=int, help=f"processes; default: one for {STREAMS_PER_PROCESS} streams")
    parser.add_argument("--repeats", type=int, default=1, help="loads, one after the other; the first warms up")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of a request, and of the server's start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", help="what is special about this run; keeps its lines")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    vocabulary = words()
    num_requests = options.requests or options.streams
    known: dict[str, object] = {"model": options.model or options.url} | {
        name: getattr(options, name) for name in ("set", "streams", "isl", "osl", "rate", "body")
    }
    known["limits"] = {"ttft_ms": options.ttft_ms, "itl_ms": options.itl_ms}
    with target_of(options) as (target, server):
        if server is not None:
            known["ready_s"] = round(server.start_s, 1)
        num_words = options.isl - template_tokens(target, vocabulary[0])
        for repeat in range(options.repeats):
            # Others in each repeat: a prefix cache would know them.
            seed = options.seed * 1000 + repeat
            prompts = make_prompts(num_requests, num_words, vocabulary, seed)
            row = known | {"repeat": repeat} | run_load(target, server, options, prompts, seed)
            print(json.dumps(row), flush=True)
            if options.note is not None:
                append("serving", environment() | {"note": options.note} | row)


if __name__ == "__main__":
    sys.exit(main())
