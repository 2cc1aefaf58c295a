"""The demo model through a running cluster: tokens per second of one stream, memory of all processes.

Starts `chorus serve` as it is by default, asks its questions one after the other at temperature 0, and adds a row to
benchmarks/results/demo.jsonl. Memory is the proportional set size of the cluster's processes after the questions.
"""

import argparse
import json
import statistics
import time
import urllib.request

from processes import find_cluster, memory_bytes
from results import append, environment
from rich.console import Console
from server import serve

GOAL_TOKENS_PER_S = 60.0
GOAL_MEMORY_GB = 3.0
QUESTIONS = (
    "What is 17 + 25?",
    "What is Chorus?",
    "Spell the word garden backwards.",
    "What is 9 times 8?",
    "Which parts does Chorus have?",
    'Reply with a JSON object that has the key "color" set to "red".',
)


def ask(address: str, model: str, question: str, effort: str) -> tuple[int, float, float]:
    """Completion tokens of a streamed answer, seconds to its first byte, seconds to its end."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "reasoning_effort": effort,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started_at = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        first_byte_s = time.perf_counter() - started_at
        events = [line.removeprefix(b"data: ") for line in response if line.startswith(b"data: {")]
    return json.loads(events[-1])["usage"]["completion_tokens"], first_byte_s, time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what is special about this run")
    arguments = parser.parse_args()
    console = Console(width=120)
    rates, decode_rates, first_bytes = [], [], []
    with serve({}) as server:
        with urllib.request.urlopen(f"http://{server.http}/v1/models", timeout=10) as response:
            model = json.load(response)["data"][0]["id"]
        ask(server.http, model, QUESTIONS[0], "low")
        for _ in range(arguments.repeats):
            answers = [ask(server.http, model, question, "high") for question in QUESTIONS]
            num_tokens = sum(tokens for tokens, _, _ in answers)
            rates.append(num_tokens / sum(total_s for _, _, total_s in answers))
            decode_s = sum(total_s - first_byte_s for _, first_byte_s, total_s in answers)
            decode_rates.append((num_tokens - len(answers)) / decode_s)
            first_bytes += [first_byte_s for _, first_byte_s, _ in answers]
        memory = memory_bytes(find_cluster(server.pid))
    row = environment() | {
        "note": arguments.note,
        "ready_s": round(server.start_s, 1),
        "tokens_per_s": round(statistics.median(rates), 1),
        "decode_tokens_per_s": round(statistics.median(decode_rates), 1),
        "first_byte_ms": round(1000 * statistics.median(first_bytes), 1),
        "memory_gb": {role: round(size / 1e9, 3) for role, size in memory.items()},
        "memory_total_gb": round(sum(memory.values()) / 1e9, 2),
    }
    append("demo", row)
    console.print(f"ready after {row['ready_s']} s; first byte after {row['first_byte_ms']} ms")
    console.print(
        f"{row['tokens_per_s']} tokens/s for one stream with its waits (goal: {GOAL_TOKENS_PER_S:.0f} or more), "
        f"{row['decode_tokens_per_s']} after the first token"
    )
    console.print(f"{row['memory_total_gb']} GB in all (goal: under {GOAL_MEMORY_GB:.0f}): {row['memory_gb']}")


if __name__ == "__main__":
    main()
