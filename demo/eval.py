"""Examines the demo model through a running server: `python -m demo.eval` starts one, `--url` names another.

Asks 1,000 held-out questions (see demo.generator) over the OpenAI API at temperature 0, and prints how many replies
were well-formed harmony, how many answers were right to the letter, and how many tool calls were exact. A reply is
well-formed if it ended by itself, shows no markup, and the gateway had nothing to repair (by its own counters, so the
server must have no other clients meanwhile). Exits with 1 if a goal is missed.
"""

import argparse
import asyncio
import contextlib
import datetime
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from benchmarks.server import serve

from chorus_cluster.harmony.encoding import load_encoding
from demo.generator import TASK_WEIGHTS, Generator
from demo.product import is_right_call, to_request
from demo.sample import EFFORTS, Sample
from demo.vocabulary import rare_words

GOALS = {"well-formed harmony": 0.99, "right answers": 0.90, "exact tool calls": 0.90}
# /metrics shows what each replica last pushed, once a second.
METRICS_DELAY_S = 3.0


@dataclass(frozen=True, slots=True)
class Result:
    sample: Sample
    right: bool
    # Ended by itself and without markup; repairs are counted apart.
    clean: bool
    completion_tokens: int
    reasoning_tokens: int
    reply: str


def questions(seed: int, count: int, today: datetime.date) -> list[Sample]:
    """Distinct held-out conversations, dated today as the server dates them."""
    generator = Generator(f"{seed}-examination", "heldout", rare_words(load_encoding()), today)
    found: dict[tuple[object, ...], Sample] = {}
    while len(found) < count:
        sample = generator.draw()
        if sample.schema is not None:
            continue  # The gateway does not take response formats yet.
        found.setdefault((sample.messages, sample.effort, tuple(tool.name for tool in sample.tools)), sample)
    return list(found.values())


async def ask(client: httpx.AsyncClient, model: str, sample: Sample) -> Result:
    response = await client.post("/v1/chat/completions", json=to_request(sample, model))
    if response.status_code != 200:
        return Result(sample, False, False, 0, 0, f"HTTP {response.status_code}: {response.text}")
    body: dict[str, Any] = response.json()
    choice, usage = body["choices"][0], body["usage"]
    message = choice["message"]
    content, calls = message.get("content") or "", message.get("tool_calls") or []
    if sample.target.tool_call is None:
        right = content == sample.target.content and not calls
    else:
        right = len(calls) == 1 and is_right_call(
            sample, calls[0]["function"]["name"], calls[0]["function"]["arguments"]
        )
    details = usage.get("completion_tokens_details") or {}
    return Result(
        sample,
        right,
        choice["finish_reason"] in ("stop", "tool_calls") and "<|" not in content,
        usage["completion_tokens"],
        details.get("reasoning_tokens", 0),
        content or str([call["function"] for call in calls]),
    )


async def num_repairs(client: httpx.AsyncClient) -> int:
    """Repairs of harmony that the cluster's gateways have counted."""
    await asyncio.sleep(METRICS_DELAY_S)
    page = (await client.get("/metrics")).raise_for_status().text
    return sum(int(float(n)) for n in re.findall(r"^chorus_gateway_harmony_repairs_total\{.*\} (\S+)$", page, re.M))


async def examine(url: str, samples: list[Sample], concurrency: int) -> tuple[list[Result], int, float]:
    """Results in the order of `samples`, repairs meanwhile, seconds."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        before = await num_repairs(client)
        begin, slots = time.monotonic(), asyncio.Semaphore(concurrency)

        async def in_turn(sample: Sample) -> Result:
            async with slots:
                return await ask(client, model, sample)

        results = await asyncio.gather(*(in_turn(sample) for sample in samples))
        seconds = time.monotonic() - begin
        return results, await num_repairs(client) - before, seconds


def report(results: list[Result], repairs: int, seconds: float) -> bool:
    """Prints the table; returns whether all goals are met."""
    calls = [result for result in results if result.sample.target.tool_call is not None]
    answers = [result for result in results if result.sample.target.tool_call is None]
    shares = {
        "well-formed harmony": (sum(result.clean for result in results) - repairs) / len(results),
        "right answers": sum(result.right for result in answers) / len(answers),
        "exact tool calls": sum(result.right for result in calls) / len(calls),
    }
    num_tokens = sum(result.completion_tokens for result in results)
    print(f"{len(results)} held-out questions, {num_tokens} tokens, {num_tokens / seconds:.0f} a second")
    print(f"\n{'':24}{'share':>8}{'goal':>8}")
    for name, share in shares.items():
        print(f"{name:24}{share:8.1%}{GOALS[name]:8.0%}{'' if share >= GOALS[name] else '  MISSED'}")
    print(f"\n{'task':16}{'asked':>8}{'right':>8}")
    for task in TASK_WEIGHTS:
        of_task = [result.right for result in results if result.sample.task == task]
        if of_task:
            print(f"{task:16}{len(of_task):8}{sum(of_task) / len(of_task):8.1%}")
    print(f"\n{'effort':16}{'asked':>8}{'right':>8}{'reasoning tokens':>20}")
    for effort in EFFORTS:
        of_effort = [result for result in results if result.sample.effort == effort]
        right = sum(result.right for result in of_effort) / max(1, len(of_effort))
        reasoning = sum(result.reasoning_tokens for result in of_effort) / max(1, len(of_effort))
        print(f"{effort:16}{len(of_effort):8}{right:8.1%}{reasoning:20.1f}")
    return all(share >= GOALS[name] for name, share in shares.items())


def print_wrong(results: list[Result], most: int) -> None:
    shown: Counter[str] = Counter()
    for result in results:
        shown[result.sample.task] += not result.right
        if not result.right and shown[result.sample.task] <= most:
            wanted = result.sample.target.tool_call or result.sample.target.content
            print(f"{result.sample.task}, {result.sample.effort}: {result.sample.messages[-1].content!r}")
            print(f"  wanted {wanted!r}\n  got    {result.reply!r}")


@contextlib.contextmanager
def address(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with serve({}) as server:
        yield f"http://{server.http}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server, e.g. http://127.0.0.1:8000; without it, one is started")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong replies of each task")
    arguments = parser.parse_args()
    samples = questions(arguments.seed, arguments.samples, datetime.datetime.now(datetime.UTC).date())
    with address(arguments.url) as url:
        results, repairs, seconds = asyncio.run(examine(url, samples, arguments.concurrency))
    met = report(results, repairs, seconds)
    print_wrong(results, arguments.wrong)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
