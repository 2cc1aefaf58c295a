"""How far the Triton runner's logits are from the truth, beside those of Transformers.

usage: PYTHONPATH=cluster:workers:kernels:vocabulary:. python -m benchmarks.truth --model DIR [--damp K]
       [--positions 4096] [--batch-invariant] [--note TEXT]

The truth is the reference transformer in float32 on the device, experts unpacked one by one. Against it, over random
tokens that are given (teacher-forced), on one JSON line each:

- transformers: Transformers' gpt-oss in bfloat16 with experts unpacked, which sets the bounds.
- prefill: ours, in chunks of --chunk.
- decode: ours of the last --decode positions, token by token, as one sequence and as the first of several, whose
  others have its tokens in another order.

`relative_rms` is the norm of a position's error over that of its logits, at the median and the 99th percentile; `top1`
the share of positions with the same likeliest token; `other_experts` the share of positions and layers where other
experts were chosen, which random weights provoke. Ours must be within 1.2 times Transformers' relative_rms, each of
prefill's and decode's at the same positions.

With --damp, the checkpoint is one whose layers add 2^-K of what they did (benchmarks/damped.py).

Then a sequence of --tokens alone and the same among --crowd: `top1` must be 0.97, and with --batch-invariant, which
turns that mode on, all bits the same. And the same calls again, prefill and crowd, must give the same bits. The exit
status is 1 if a bound is missed.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.damped import write_damped
from benchmarks.forced import ForcedSequences, checkpoint, load
from benchmarks.results import append, environment
from tests.support import interpreter
from torch import Tensor

BOUND = 1.2
CROWD_TOP1 = 0.97
# Sequences that decode at once, each a way of its own through the kernels.
DECODE_SEQUENCES = (1, 2, 4, 8)
# Positions whose logits are compared at a time, and whose scores the truth holds.
_SLICE = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of T positions: logits [T, N], and sets of experts, int64 [layers, T, K], sorted."""

    logits: Tensor
    experts: Tensor

    def last(self, count: int) -> "Outcome":
        return Outcome(self.logits[-count:], self.experts[:, -count:])

    def cpu(self) -> "Outcome":
        """Where it leaves the device to others."""
        return Outcome(self.logits.cpu(), self.experts.cpu())


@dataclass(frozen=True, slots=True)
class Distance:
    """From the truth, over positions."""

    median: float
    p99: float
    top1: float
    other_experts: float

    def row(self) -> dict[str, float]:
        return {
            "relative_rms_p50": round(self.median, 5),
            "relative_rms_p99": round(self.p99, 5),
            "top1": round(self.top1, 5),
            "other_experts": round(self.other_experts, 5),
        }

    def within(self, judge: "Distance") -> bool:
        return self.median <= BOUND * judge.median and self.p99 <= BOUND * judge.p99


def distance(actual: Outcome, truth: Outcome, device: torch.device) -> Distance:
    relative, same = compare(actual.logits, truth.logits, device)
    other = (actual.experts != truth.experts).any(-1).double().mean()
    return Distance(float(relative.median()), float(relative.quantile(0.99)), same, float(other))


def compare(actual: Tensor, expected: Tensor, device: torch.device) -> tuple[Tensor, float]:
    """Logits [T, N], compared on the device: each position's relative error, float64 [T], and the share with the same
    likeliest token."""
    relative, agreeing = [], 0
    for ours, theirs in zip(actual.split(_SLICE), expected.split(_SLICE), strict=True):
        ours, theirs = ours.to(device).float(), theirs.to(device).float()
        relative.append(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).double())
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return torch.cat(relative), agreeing / len(actual)


def true_outcome(folder: Path, ids: Sequence[int], device: torch.device) -> Outcome:
    """Of the reference transformer in float32."""
    from chorus_kernels.attention import attention
    from chorus_workers.model.checkpoint import load_model_as
    from chorus_workers.model.transformer import ReferenceOps, Transformer
    from chorus_workers.model.weights import PackedMatrices

    class Form:
        """The reference form on the device, experts packed."""

        def embedding(self, rows: Tensor) -> Tensor:
            return rows.to(device)

        def dense(self, tensor: Tensor) -> Tensor:
            return tensor.to(device).float()

        def packed_experts(self, blocks: Tensor, scales: Tensor) -> PackedMatrices:
            return PackedMatrices(blocks.to(device), scales.to(device))

        def floating_experts(self, matrices: Tensor) -> Tensor:
            return matrices.to(device).float()

    class Ops(ReferenceOps):
        def __init__(self) -> None:
            self.chosen: list[Tensor] = []

        def route(self, router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            experts, weights = ReferenceOps.route(router_logits, top_k)
            self.chosen.append(experts)
            return experts, weights

    class WholeSequence:
        def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
            window, parts = model.config.windows[layer], []
            for begin in range(0, len(q), _SLICE):
                end = min(begin + _SLICE, len(q))
                parts.append(
                    attention(
                        q[begin:end],
                        k[:end],
                        v[:end],
                        sinks,
                        query_positions=positions[begin:end],
                        key_positions=positions[:end],
                        window=window,
                    )
                )
            return torch.cat(parts).flatten(1)

    model, ops, positions = load_model_as(Form(), folder), Ops(), torch.arange(len(ids), device=device)
    with device:
        transformer = Transformer(model, ops)
    hidden = transformer.forward(torch.tensor(ids, device=device), positions, WholeSequence())
    return Outcome(transformer.logits(hidden), torch.stack(ops.chosen).sort(-1).values)


def transformers_outcome(folder: Path, ids: Sequence[int], device: torch.device) -> Outcome:
    """Of Transformers in bfloat16, its experts unpacked."""
    import transformers
    from safetensors import safe_open

    from chorus_kernels.mxfp4 import unpack_mxfp4

    config = transformers.GptOssConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = transformers.GptOssForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    missing = dict(model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith("_scales"):
                    continue
                tensor = tensors.get_tensor(name).to(device)
                if name.endswith("_blocks"):
                    name = name.removesuffix("_blocks")
                    tensor = unpack_mxfp4(tensor, tensors.get_tensor(f"{name}_scales").to(device), torch.bfloat16)
                    tensor = tensor.transpose(1, 2)
                missing.pop(name).data.copy_(tensor)
    if missing:
        raise ValueError(f"the checkpoint has no {sorted(missing)[0]}")
    chosen: list[Tensor] = []

    def record(module: object, inputs: object, outputs: tuple[Tensor, ...]) -> None:
        chosen.extend(output for output in outputs if output.dtype == torch.int64)

    for layer in model.model.layers:
        layer.mlp.router.register_forward_hook(record)
    logits = model(torch.tensor([ids], device=device), use_cache=False).logits[0]
    return Outcome(logits, torch.stack([experts.view(len(ids), -1) for experts in chosen]).sort(-1).values)


@contextmanager
def recorded_experts() -> Iterator[list[Tensor]]:
    """What the Triton runner's transformer chooses, layer by layer."""
    from chorus_workers.runner.triton import transformer

    original, chosen = transformer.route, []

    def route(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        experts, weights = original(*arguments, **named)
        chosen.append(experts.long())
        return experts, weights

    transformer.route = route
    try:
        yield chosen
    finally:
        transformer.route = original


def our_outcome(
    model: Any,
    ids: Sequence[int],
    chunk: int,
    num_prompt: int = 0,
    num_sequences: int = 1,
    *,
    batch_invariant: bool = False,
) -> Outcome:
    """In chunks, each as one step; a prompt of so many tokens, if there is one, goes before them and is left out. With
    several sequences, that of the first; the others have its tokens in another order, so that it shows if what is one
    sequence's goes to another."""
    sequences = ForcedSequences(model, num_sequences, len(ids), batch_invariant=batch_invariant)
    crowd = [rotated(ids, number * len(ids) // num_sequences) for number in range(num_sequences)]
    if num_prompt:
        sequences.normed(0, [own[:num_prompt] for own in crowd])
    logits, experts = [], []
    for start in range(num_prompt, len(ids), chunk):
        tokens = [own[start : start + chunk] for own in crowd]
        with recorded_experts() as chosen:
            logits.append(sequences.logits(start, tokens)[: len(tokens[0])].clone())
        experts.append(torch.stack(chosen)[:, : len(tokens[0])])
    return Outcome(torch.cat(logits), torch.cat(experts, 1).sort(-1).values)


def rotated(ids: Sequence[int], by: int) -> Sequence[int]:
    return [*ids[by:], *ids[:by]]


def crowd_logits(model: Any, crowd: Tensor, num_prompt: int, *, batch_invariant: bool = False) -> tuple[Tensor, Tensor]:
    """Of the first of sequences, int64 [S, L], after prompts of so many tokens: float32 [L - num_prompt, N]; and a sum
    of all logits' bits, int64 [L - num_prompt]."""
    sequences = ForcedSequences(model, len(crowd), crowd.shape[1], batch_invariant=batch_invariant)
    # No more than 8,192 tokens a step.
    at_once = max(1, 8192 // num_prompt)
    for first in range(0, len(crowd), at_once):
        sequences.normed(0, crowd[first : first + at_once, :num_prompt].tolist(), first)
    logits, bits = [], []
    for position in range(num_prompt, crowd.shape[1]):
        step = sequences.logits(position, crowd[:, position : position + 1].tolist())
        logits.append(step[:1].clone())
        bits.append(step.view(torch.int32).sum(dtype=torch.int64))
    return torch.cat(logits), torch.stack(bits)


def rows(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.Generator().manual_seed(options.seed)
    model = load(folder)
    ids = torch.randint(0, model.config.vocab_size, (options.positions,), generator=source).tolist()
    crowd = torch.randint(0, model.config.vocab_size, (options.crowd, 2 * options.tokens), generator=source)

    mode = {"batch_invariant": options.batch_invariant}
    prefill, again = (our_outcome(model, ids, options.chunk, **mode) for _ in range(2))
    yield {"what": "prefill again", "positions": len(ids), "within": torch.equal(prefill.logits, again.logits)}
    prefill = prefill.cpu()
    del again
    before = len(ids) - options.decode
    decodes = {count: our_outcome(model, ids, 1, before, count, **mode).cpu() for count in DECODE_SEQUENCES}
    alone, _ = crowd_logits(model, crowd[:1], options.tokens, **mode)
    among, bits = crowd_logits(model, crowd, options.tokens, **mode)
    _, bits_again = crowd_logits(model, crowd, options.tokens, **mode)
    yield {"what": "crowd again", "sequences": len(crowd), "within": torch.equal(bits, bits_again)}
    relative, top1 = compare(among, alone, device)
    yield {
        "what": "alone and in a crowd",
        "sequences": len(crowd),
        "positions": len(alone),
        "relative_rms_p50": round(float(relative.median()), 5),
        "relative_rms_max": round(float(relative.max()), 5),
        "top1": round(top1, 5),
        "within": torch.equal(alone, among) if options.batch_invariant else top1 >= CROWD_TOP1,
    }
    del model
    free(device)

    truth = true_outcome(folder, ids, device).cpu()
    free(device)
    judge = transformers_outcome(folder, ids, device).cpu()
    free(device)
    judged = distance(judge, truth, device)
    judged_last = distance(judge.last(options.decode), truth.last(options.decode), device)
    yield {"what": "transformers", "positions": len(ids)} | judged.row()
    yield {"what": "transformers", "positions": options.decode} | judged_last.row()
    found = distance(prefill, truth, device)
    yield {"what": "prefill", "positions": len(ids)} | found.row() | {"within": found.within(judged)}
    for count, decode in decodes.items():
        found = distance(decode, truth.last(options.decode), device)
        row = {"what": "decode", "sequences": count, "positions": options.decode}
        yield row | found.row() | {"within": found.within(judged_last)}


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's folder; random: a tiny random one")
    parser.add_argument("--damp", type=int, default=0, help="layers add 2^-DAMP of what they did")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=1500)
    parser.add_argument("--crowd", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128, help="the prompt's in the crowd, and those after it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--note")
    options = parser.parse_args()
    # Before kernels are imported, which is why they are imported so late.
    interpreter.use_where_there_is_no_gpu()
    torch.set_float32_matmul_precision("highest")
    begin, missed = time.perf_counter(), False
    with ExitStack() as stack:
        folder = checkpoint(options.model, stack)
        name = folder.name
        if options.damp:
            # Beside it, where there is room for one.
            damped = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
            write_damped(folder, damped, options.damp)
            folder, name = damped, f"{name}, damped by 2^{options.damp}"
        for found in rows(folder, options):
            row = {"model": name} | ({"batch_invariant": True} if options.batch_invariant else {}) | found
            print(json.dumps(row), flush=True)
            missed |= not found.get("within", True)
            if options.note:
                append("truth", environment() | {"note": options.note} | row)
    print(f"{time.perf_counter() - begin:.1f} s")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
