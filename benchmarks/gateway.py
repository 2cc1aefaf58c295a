"""What the cluster adds to the engine: CPU per streamed token, tokens per core, time to first token.

A fake engine steps every 5 ms and draws well-formed harmony (`final` from the start, then one word again and again);
everything else is what `chorus serve` runs. One row for each protocol and number of streams goes to
benchmarks/results/gateway.jsonl.

Terms: CPU is user and system time of all processes of a role while the streams run, over the tokens delivered, so a
request's fixed cost is in it. "Tokens/s a core" are tokens per CPU second of gateway, proxy and worker together.
"Added" is the time to the response's first byte, minus the one engine step it needs, and the time to the first text,
minus the steps that the harmony header takes before it. Over HTTP the first byte says that the request is admitted; a
gRPC stream has nothing to say before the first text.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from processes import ROLES, cpu_seconds, find_cluster
from results import append, environment
from rich.console import Console
from rich.table import Table
from server import Server, serve

from chorus_cluster.harmony.encoding import load_encoding

MODEL = "chorus-fake"
MARKER = "token"
STEP_S = 0.005
IDLE_ROUNDS = 20
IDLE_TOKENS = 16
# "responses": /v1/responses over HTTP, not stored.
GOAL_US_PER_TOKEN = {"http": 60.0, "grpc": 80.0, "responses": 60.0}
GOAL_ADDED_MS = 6.0
GOAL_STREAMS = 128
Row = dict[str, object]


def fake_model(step_s: float) -> tuple[str, int]:
    """The configuration of the fake model, and the number of its tokens that stand before the first text."""
    encoding = load_encoding()
    prefix = encoding.encode("<|channel|>final<|message|>", allowed_special="all")
    (word,) = encoding.encode(f" {MARKER}")
    return "fake:" + json.dumps({"step_time_s": step_s, "prefix": prefix, "body": word}), len(prefix)


def run_client(
    server: Server, protocol: str, streams: int, tokens: int, rounds: int = 1, pause: float = 0
) -> list[Row]:
    address = server.grpc if protocol == "grpc" else server.http
    command = [sys.executable, str(Path(__file__).with_name("load_client.py"))]
    command += ["--protocol", protocol, "--address", address, "--model", MODEL, "--marker", MARKER]
    command += ["--streams", str(streams), "--tokens", str(tokens), "--rounds", str(rounds), "--pause", str(pause)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return [json.loads(line) for line in result.stdout.splitlines()]


def measure_load(server: Server, protocol: str, streams: int, tokens: int, repeats: int) -> Row:
    """Medians over the repeats, after one that warms up."""
    run_client(server, protocol, streams, tokens)
    samples: list[dict[str, float]] = []
    for _ in range(repeats):
        cluster = find_cluster(server.pid)
        before = cpu_seconds(cluster)
        (load,) = run_client(server, protocol, streams, tokens)
        after = cpu_seconds(cluster)
        num_tokens, wall_s = load["num_tokens"], load["wall_s"]
        assert isinstance(num_tokens, int) and isinstance(wall_s, float)
        sample = {role: 1e6 * (after[role] - before[role]) / num_tokens for role in ROLES}
        samples.append(sample | {"tokens_per_s": num_tokens / wall_s})
    median = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    serving = median["gateway"] + median["proxy"] + median["worker"]
    return {
        "cpu_us_per_token": {role: round(median[role], 1) for role in ROLES},
        "gateway_and_proxy_us_per_token": round(median["gateway"] + median["proxy"], 1),
        "tokens_per_s": round(median["tokens_per_s"]),
        "tokens_per_s_a_core": round(1e6 / serving),
        "repeats": [{key: round(value, 1) for key, value in sample.items()} for sample in samples],
    }


def measure_idle(server: Server, protocol: str, num_header_tokens: int, step_s: float) -> Row:
    """Time that one stream on an idle cluster waits beyond the engine's steps, in ms; medians."""
    rounds = run_client(server, protocol, 1, IDLE_TOKENS, IDLE_ROUNDS, 0.1)[2:]

    def added_ms(key: str, steps: int) -> list[float]:
        times: list[float] = []
        for load in rounds:
            values = load[key]
            assert isinstance(values, list)
            times += values
        return sorted(round(1000 * (value - steps * step_s), 2) for value in times)

    first_byte, first_text = added_ms("first_byte_s", 1), added_ms("first_text_s", num_header_tokens + 1)
    return {
        "added_first_byte_ms": round(statistics.median(first_byte), 2),
        "added_first_text_ms": round(statistics.median(first_text), 2),
        "added_first_byte_all_ms": first_byte,
    }


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="CPU µs per streamed token, by role")
    for column in ("", "streams", *ROLES, "gateway + proxy", "goal", "tokens/s", "a core", "added ms", "goal"):
        table.add_column(column, justify="right")
    for row in rows:
        cpu = row["cpu_us_per_token"]
        assert isinstance(cpu, dict)
        protocol, streams = str(row["protocol"]), row["streams"]
        goal = f"{GOAL_US_PER_TOKEN[protocol]:.0f}" if streams == GOAL_STREAMS else ""
        added = f"{row['added_first_byte_ms']} / {row['added_first_text_ms']}" if "added_first_byte_ms" in row else ""
        table.add_row(
            protocol,
            str(streams),
            *(str(cpu[role]) for role in ROLES),
            str(row["gateway_and_proxy_us_per_token"]),
            goal,
            str(row["tokens_per_s"]),
            str(row["tokens_per_s_a_core"]),
            added,
            f"{GOAL_ADDED_MS:.0f}" if added else "",
        )
    console.print(table)
    console.print("added ms: to the first byte of the response / to the first text, at one stream on an idle cluster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of each stream")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--protocols", nargs="+", choices=tuple(GOAL_US_PER_TOKEN), default=["http", "grpc"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what is special about this run")
    arguments = parser.parse_args()
    console = Console(width=150)
    model, num_header_tokens = fake_model(STEP_S)
    workers = {"max_num_seqs": max(arguments.streams), "max_batched_tokens": 16 * max(arguments.streams)}
    rows = []
    with serve({"model": {"path": model, "name": MODEL}, "workers": workers}) as server:
        console.print(f"ready after {server.start_s:.1f} s")
        for protocol in arguments.protocols:
            for streams in arguments.streams:
                row = environment() | {"protocol": protocol, "streams": streams, "tokens": arguments.tokens}
                row |= {"step_ms": 1000 * STEP_S, "note": arguments.note}
                row |= measure_load(server, protocol, streams, arguments.tokens, arguments.repeats)
                if streams == 1:
                    row |= measure_idle(server, protocol, num_header_tokens, STEP_S)
                append("gateway", row)
                rows.append(row)
    show(rows, console)


if __name__ == "__main__":
    main()
