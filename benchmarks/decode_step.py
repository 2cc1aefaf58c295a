"""Time of decode steps on the device, of one or several versions of the source in turn, without a checkpoint.

usage: PYTHONPATH=cluster:workers:kernels:vocabulary:. python -m benchmarks.decode_step [--shape 20b] [--tokens 1,2,4,8]
       [--context 1100] [--tree DIR ...] [--batch-invariant] [--profile] [--note TEXT]

Random weights of the model's shapes are made on the device. For each number of tokens, one of each sequence, a step
from embeddings to logits is captured as a CUDA graph, as the engine's; it is replayed, and `ms` is the median. --tree
names other checkouts (of versions that this program knows how to call): each has a process of its own on the same GPU,
and they take turns, so that `ratio` to the first is worth more than either time. `bits` tells which gave the same
logits. With --batch-invariant, this checkout in that mode is one more of them. With --profile, the time of each kernel
follows, in microseconds of a step and the number of launches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.results import append, environment
from tests.support import interpreter
from tests.support.checkpoints import Shape, hugging_face_config
from torch import Tensor

SHAPES = {
    "20b": Shape(24, 32, 4, 2880, 2880, 64, 8, 64, 201088, overrides={"max_position_embeddings": 131072}),
    "120b": Shape(36, 128, 4, 2880, 2880, 64, 8, 64, 201088, overrides={"max_position_embeddings": 131072}),
    # For a machine without a GPU.
    "tiny": Shape(1, 4, 2, 32, 32, 4, 2, 16, 50),
}
ROUNDS, REPLAYS = 7, 20
PAGE = 16
_ROOT = Path(__file__).resolve().parent.parent


def random_model(shape: Shape, device: torch.device) -> Any:
    """As `load_model_as(DeviceForm(...))` would make it, of numbers as a checkpoint's of random weights."""
    from chorus_kernels.moe.layout import PackedExperts, empty_experts
    from chorus_workers.model.config import read_config
    from chorus_workers.model.weights import LayerWeights, Model, Shard, Vocabulary

    def normal(*sizes: int, std: float = 0.02) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=torch.bfloat16) * std

    def near_one(size: int) -> Tensor:
        return 1 + normal(size, std=0.1)

    def experts(rows: int, columns: int) -> PackedExperts:
        packed = empty_experts(shape.num_experts, rows, columns, device)
        packed.words.random_(-(2**31), 2**31 - 1)
        # Scales of 2^-9 to 2^-6.
        packed.scales.view(torch.uint8).random_(244, 248)
        packed.units.fill_(1.0)
        return packed

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(hugging_face_config(shape)), encoding="utf-8")
        config = read_config(Path(folder))
    hidden, inner, attended = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
    projected = attended + 2 * shape.num_kv_heads * shape.head_dim
    layers = tuple(
        LayerWeights(
            attention_norm=near_one(hidden),
            qkv=normal(projected, hidden),
            qkv_bias=normal(projected),
            sinks=normal(shape.num_heads, std=1.0),
            out=normal(hidden, attended),
            out_bias=normal(hidden),
            mlp_norm=near_one(hidden),
            router=normal(shape.num_experts, hidden),
            router_bias=normal(shape.num_experts),
            gate_up=experts(2 * inner, hidden),
            gate_up_bias=normal(shape.num_experts, 2 * inner),
            down=experts(hidden, inner),
            down_bias=normal(shape.num_experts, hidden),
        )
        for _ in config.windows
    )
    vocabulary, embedding = Vocabulary.plain(shape.vocab_size), normal(shape.vocab_size, hidden, std=1.0)
    return Model(config, Shard(), vocabulary, embedding, layers, near_one(hidden), normal(shape.vocab_size, hidden))


@dataclass
class Step:
    """A step of so many tokens that can be run again, and the logits of its last run."""

    run: Callable[[], None]
    logits: Tensor
    # Of a graph, what it was captured from: that holds the memory which it reads.
    captured: "Step | None" = None


class Steps:
    """Steps of one model, over KV memory of random numbers."""

    def __init__(self, shape: Shape, tokens: Sequence[int], context: int, batch_invariant: bool) -> None:
        from chorus_kernels.decode_inputs import GatheredInputs
        from chorus_workers.runner.base import RunnerInfo
        from chorus_workers.runner.triton.form import product_tiles
        from chorus_workers.runner.triton.kv_memory import DeviceKVMemory
        from chorus_workers.runner.triton.transformer import DeviceTransformer

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        model, most, pages = random_model(shape, self._device), max(tokens), -(-context // PAGE)
        # Whatever is free: other checkouts' processes have memory, too.
        tiles = None if batch_invariant else product_tiles(model)
        info = RunnerInfo(shape.vocab_size, pages * PAGE, PAGE, most * pages, most, most, num_shards=1)
        memory = DeviceKVMemory(model.config, model.shard, info, torch.bfloat16, self._device)
        for layer in memory.layers:
            layer.normal_()
        # Not every checkout knows of it.
        mode = {"batch_invariant": True} if batch_invariant else {}
        transformer = DeviceTransformer(model, memory, info.max_model_len, tiles, **mode)
        tables = torch.arange(most * pages, dtype=torch.int32, device=self._device).view(most, pages)
        ids = torch.randint(0, shape.vocab_size, (most,), dtype=torch.int32, device=self._device)
        inputs = GatheredInputs.zeros(most, shape.hidden_size, shape.head_dim, pages, torch.bfloat16, self._device)

        def step(count: int) -> Step:
            numbers = torch.arange(count, device=self._device)
            sent = torch.stack(
                [ids[:count], torch.full_like(numbers, context - 1), torch.full_like(numbers, context), numbers]
            ).int()
            logits = torch.empty(count, shape.vocab_size, device=self._device)
            mine = inputs.first(count)

            def run() -> None:
                transformer.gather(sent, ids, tables, mine)
                transformer.logits(transformer.decode(mine), out=logits)

            return Step(run, logits)

        self._steps = {count: self._captured(step(count)) for count in tokens}

    def _captured(self, step: Step) -> Step:
        if self._device.type == "cpu":
            return step
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step.run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step.run()
        return Step(graph.replay, step.logits, captured=step)

    def milliseconds(self, count: int) -> float:
        """Of one step, by REPLAYS of them."""
        step = self._steps[count]
        step.run()
        if self._device.type == "cpu":
            start = time.perf_counter()
            step.run()
            return 1000 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(REPLAYS):
            step.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / REPLAYS

    def bits(self, count: int) -> int:
        """A sum of the logits' bits."""
        step = self._steps[count]
        step.run()
        return int(step.logits.view(torch.int32).sum(dtype=torch.int64))

    def profile(self, count: int) -> dict[str, tuple[float, int]]:
        """Of each kernel, microseconds and launches in a step."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(REPLAYS):
                self._steps[count].run()
            torch.cuda.synchronize()
        times: Counter[str] = Counter()
        launches: Counter[str] = Counter()
        for event in found.events():
            times[event.name] += event.device_time
            launches[event.name] += 1
        return {name: (time / REPLAYS, launches[name] // REPLAYS) for name, time in times.most_common()}


@torch.inference_mode()
def answer(options: argparse.Namespace) -> None:
    """The life of a child: a question a line, a JSON answer a line."""
    steps = Steps(SHAPES[options.shape], options.tokens, options.context, options.batch_invariant)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        what, count = line.split()
        print(json.dumps(getattr(steps, what)(int(count))), flush=True)


class Child:
    """A process with the steps of one checkout. Errors: RuntimeError, if it ends."""

    def __init__(self, tree: Path, arguments: Sequence[str], stack: ExitStack) -> None:
        paths = [*(str(tree / part) for part in ("cluster", "workers", "kernels")), str(_ROOT)]
        # Each child decides for itself whether kernels are interpreted.
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.decode_step", "--child", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        stack.callback(self._process.kill)

    def result(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, what: str, count: int) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        return self.result()


def rows(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[dict[str, object]]:
    trees = [_ROOT, *(Path(tree).resolve() for tree in options.tree)]
    modes: list[list[str]] = [[] for _ in trees]
    if options.batch_invariant:
        trees.append(_ROOT)
        modes.append(["--batch-invariant"])
    with ExitStack() as stack:
        children = [Child(tree, [*arguments, *mode], stack) for tree, mode in zip(trees, modes, strict=True)]
        for child in children:
            child.result()
        for count in options.tokens:
            times: list[list[float]] = [[] for _ in trees]
            for number in range(ROUNDS):
                turns = list(enumerate(children))
                for index, child in turns if number % 2 else reversed(turns):
                    times[index].append(child.ask("milliseconds", count))
            medians = [statistics.median(own) for own in times]
            bits = [child.ask("bits", count) for child in children]
            for tree, mode, child, median, own in zip(trees, modes, children, medians, bits, strict=True):
                row: dict[str, object] = {"tree": tree.name + " ".join(mode), "tokens": count, "ms": round(median, 4)}
                if len(trees) > 1:
                    row["ratio"] = round(median / medians[0], 4)
                    row["bits"] = own == bits[0]
                yield row
                if options.profile:
                    for name, (us, launches) in child.ask("profile", count).items():
                        print(f"  {us:9.1f} us {launches:5} x {name[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="20b")
    parser.add_argument("--tokens", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--context", type=int, default=1100, help="positions that each sequence sees")
    parser.add_argument("--tree", action="append", default=[], help="another checkout")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--note")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        # Before kernels are imported, which is why they are imported so late.
        interpreter.use_where_there_is_no_gpu()
        return answer(options)
    tokens = ",".join(str(count) for count in options.tokens)
    arguments = ["--shape", options.shape, "--tokens", tokens, "--context", str(options.context)]
    for row in rows(options, arguments):
        row = {"shape": options.shape, "context": options.context} | row
        print(json.dumps(row), flush=True)
        if options.note:
            append("decode_step", environment() | {"note": options.note} | row)


if __name__ == "__main__":
    main()
