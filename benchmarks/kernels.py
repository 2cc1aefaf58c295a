"""Time of each GPU kernel at the shapes of gpt-oss, beside what the GPU could do at best.

usage: PYTHONPATH=kernels:. python benchmarks/kernels.py [--only WORD] [--tokens 1,8,64] [--note N]

A row's calls are captured into one CUDA graph, each on data of its own until these exceed the GPU's cache, and the
graph is replayed; `us` is the median time of one call, gaps between launches included, as in a step. `floor_us` is the
larger of bytes over the memory's rate and operations over the tensor cores' rate, both measured here first: by a large
copy, and by a large product of bfloat16. Bytes count each input and output once, and of experts those that are chosen.
With a note, the lines are added to benchmarks/results/kernels.jsonl.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from results import append, environment
from torch import Tensor

from chorus_kernels.attention import op as attention
from chorus_kernels.decode_inputs import GatheredInputs
from chorus_kernels.decode_inputs.op import gather
from chorus_kernels.linear.layout import tiled
from chorus_kernels.linear.op import MAX_TILED_TOKENS, MAX_TOKENS, MAX_VECTOR_TOKENS, linear
from chorus_kernels.moe.layout import PackedExperts, empty_experts
from chorus_kernels.moe.op import (
    MAX_DECODE_TOKENS,
    MAX_SPLIT_TOKENS,
    ExpertLayer,
    combine_norm,
    expert_rows,
    expert_sum,
    operand_factor,
    route,
)
from chorus_kernels.norm_rope.op import norm_linear, rms_norm
from chorus_kernels.sampling.op import sample

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, WINDOW, PAGE = 2880, 2880, 64, 8, 64, 201088, 128, 16
QKV, ATTENDED = (HEADS + 2 * KV_HEADS) * HEAD_DIM, HEADS * HEAD_DIM
TOP_K = 4
NUM_EXPERTS = {"20b": 32, "120b": 128}
DENSE = {"qkv": (QKV, HIDDEN), "out": (HIDDEN, ATTENDED), "router": (32, HIDDEN), "head": (VOCAB, HIDDEN)}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 8192)
# (sequences, context): decode; (chunks, tokens each): prefill.
DECODE = ((1, 128), (1, 1024), (1, 8192), (8, 1024), (32, 1024), (64, 1024), (128, 1280), (256, 1280))
PREFILL = ((8, 1024), (1, 8192))
# Twice the cache of an H100 or H200.
_ROTATED_BYTES = 100 << 20
_MAX_SETS = 24
_REPLAYS = 20
_DEVICE = "cuda"


@dataclass(frozen=True)
class Row:
    """A kernel at a shape. `make` returns a call on data of its own."""

    name: str
    shape: str
    num_bytes: int
    num_ops: int
    make: Callable[[], Callable[[], object]]


def measure_us(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds of one call, in a graph of all."""
    stream = torch.cuda.Stream()
    # What the calls read is made on the current one.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in (*calls, *calls):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Results are kept, so that no call writes where another one did.
        kept = [call() for call in calls]
    graph.replay()
    times = []
    for _ in range(_REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    kept.clear()
    return statistics.median(times)


def measure(row: Row, bytes_per_us: float, ops_per_us: float) -> dict[str, object]:
    num_sets = min(_MAX_SETS, max(2, -(-_ROTATED_BYTES // max(row.num_bytes, 1))))
    us = measure_us([row.make() for _ in range(num_sets)])
    floor = max(row.num_bytes / bytes_per_us, row.num_ops / ops_per_us)
    return {
        "kernel": row.name,
        "shape": row.shape,
        "us": round(us, 2),
        "gb_s": round(row.num_bytes / us / 1e3, 1),
        "tflop_s": round(row.num_ops / us / 1e6, 2),
        "floor_us": round(floor, 2),
        "share": round(floor / us, 3),
    }


def ceilings() -> tuple[float, float]:
    """Bytes and operations per microsecond that this GPU reaches."""
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device=_DEVICE) for _ in range(2))
    copied = measure_us([lambda: target.copy_(source)])
    a, b = (torch.randn(8192, 8192, device=_DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = measure_us([lambda: torch.mm(a, b)])
    return 2 * source.numel() / copied, 2 * 8192**3 / product


def rows(tokens: Sequence[int]) -> Iterator[Row]:
    for count in tokens:
        yield from _dense_rows(count)
        yield from _norm_rows(count)
        for model in NUM_EXPERTS:
            yield from _moe_rows(model, count)
    for kv_dtype in (torch.bfloat16, torch.float8_e4m3fn):
        for num_sequences, length in DECODE:
            yield from _decode_rows(num_sequences, length, kv_dtype)
        for num_chunks, length in PREFILL:
            yield from _prefill_rows(num_chunks, length, kv_dtype)
    for count in (1, 64, 256):
        yield _gather_row(count)
        yield _sampling_row(count)


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=_DEVICE, dtype=dtype)


def _dense_rows(count: int) -> Iterator[Row]:
    for name, (num_rows, depth) in DENSE.items():
        if name == "head" and count > 256:
            continue
        out_bytes = 4 if name in ("router", "head") else 2
        out_dtype = torch.float32 if out_bytes == 4 else torch.bfloat16
        has_bias, has_residual = name != "head", name == "out"

        def make(
            num_rows: int = num_rows,
            depth: int = depth,
            out_dtype: torch.dtype = out_dtype,
            has_bias: bool = has_bias,
            has_residual: bool = has_residual,
            has_tiles: bool = False,
        ) -> Callable[[], object]:
            x, weight = _random(count, depth), _random(num_rows, depth)
            bias = _random(num_rows) if has_bias else None
            residual = _random(count, num_rows) if has_residual else None
            tiles = tiled(weight) if has_tiles else None
            return lambda: linear(x, weight, bias, residual, out_dtype, tiles=tiles)

        num_bytes = 2 * num_rows * depth + 2 * count * depth + count * num_rows * (out_bytes + 2 * has_residual)
        num_ops = 2 * count * num_rows * depth
        yield Row(f"linear {name}", f"T={count}", num_bytes, num_ops, make)
        if MAX_VECTOR_TOKENS < count <= MAX_TILED_TOKENS and name != "router":
            yield Row(f"linear {name} tiled", f"T={count}", num_bytes, num_ops, partial(make, has_tiles=True))


def _norm_rows(count: int) -> Iterator[Row]:
    def plain() -> Callable[[], object]:
        x, weight = _random(count, HIDDEN), _random(HIDDEN)
        return lambda: rms_norm(x, weight, 1e-5)

    def with_router() -> Callable[[], object]:
        x, norm, weight, bias = _random(count, HIDDEN), _random(HIDDEN), _random(32, HIDDEN), _random(32)
        return lambda: norm_linear(x, norm, 1e-5, weight, bias)

    def with_sum() -> Callable[[], object]:
        x, norm = _random(count, HIDDEN), _random(HIDDEN)
        chosen, weights = route(_random(count, 32, dtype=torch.float32), TOP_K)
        dtype = torch.float32 if operand_factor(count) != 1 else torch.bfloat16
        rows = _random(count * TOP_K, HIDDEN, dtype=dtype)
        return lambda: combine_norm(rows, chosen, weights, x, norm, 1e-5, num_experts=32)

    yield Row("rms_norm", f"T={count}", 4 * count * HIDDEN, 0, plain)
    if count <= MAX_TOKENS:
        yield Row(
            "norm_linear router", f"T={count}", 4 * count * HIDDEN + 64 * HIDDEN, 64 * count * HIDDEN, with_router
        )
    row_bytes = 4 if operand_factor(count) != 1 else 2
    yield Row("combine_norm", f"T={count}", (TOP_K * row_bytes + 6) * count * HIDDEN, 0, with_sum)


def _moe_rows(model: str, count: int) -> Iterator[Row]:
    num_experts = NUM_EXPERTS[model]

    def make_route() -> Callable[[], object]:
        logits = _random(count, num_experts, dtype=torch.float32)
        return lambda: route(logits, TOP_K)

    yield Row(f"route {model}", f"T={count}", count * (num_experts * 4 + TOP_K * 8), 0, make_route)

    # One layer's weights alone exceed the cache; each call has routes of its own, so that experts change.
    layer = ExpertLayer(
        _random_experts(num_experts, 2 * INNER, HIDDEN),
        _random(num_experts, 2 * INNER),
        _random_experts(num_experts, HIDDEN, INNER),
        _random(num_experts, HIDDEN),
    )
    generator = torch.Generator(_DEVICE).manual_seed(count)
    seen: list[int] = []

    def make_experts() -> Callable[[], object]:
        factor = operand_factor(count)
        x = _random(count, HIDDEN) * factor
        logits = torch.randn(count, num_experts, device=_DEVICE, generator=generator)
        chosen, _ = route(logits, TOP_K)
        seen.append(chosen.unique().numel())
        return lambda: expert_rows(x, chosen, layer, x_factor=factor)

    probes = [make_experts() for _ in range(8)]
    distinct = sum(seen) / len(seen)
    del probes
    # Four bits a weight and a scale for each 32.
    expert_bytes = 3 * INNER * HIDDEN * 17 / 32
    num_bytes = int(distinct * expert_bytes) + 4 * count * HIDDEN
    num_ops = 2 * 3 * INNER * HIDDEN * count * TOP_K
    yield Row(f"experts {model}", f"T={count}", num_bytes, num_ops, make_experts)

    def make_sum() -> Callable[[], object]:
        x, residual = _random(count, HIDDEN) * operand_factor(count), _random(count, HIDDEN)
        logits = torch.randn(count, num_experts, device=_DEVICE, generator=generator)
        chosen, weights = route(logits, TOP_K)
        return lambda: expert_sum(x, chosen, weights, layer, residual, x_factor=operand_factor(count))

    def make_whole() -> Callable[[], object]:
        x = _random(count, HIDDEN) * operand_factor(count)
        logits = torch.randn(count, num_experts, device=_DEVICE, generator=generator)
        progress = torch.empty(count, TOP_K, dtype=torch.int32, device=_DEVICE)

        def call() -> Tensor:
            chosen, _ = route(logits, TOP_K, progress=progress)
            return expert_rows(x, chosen, layer, x_factor=operand_factor(count), progress=progress)

        return call

    if count <= MAX_SPLIT_TOKENS:
        yield Row(f"experts and sum {model}", f"T={count}", num_bytes, num_ops, make_sum)
    elif count <= MAX_DECODE_TOKENS:
        yield Row(f"route and experts in one launch {model}", f"T={count}", num_bytes, num_ops, make_whole)


def _random_experts(num_experts: int, num_rows: int, num_columns: int) -> PackedExperts:
    """Matrices of random nibbles, with scales around 2^-7."""
    packed = empty_experts(num_experts, num_rows, num_columns, _DEVICE)
    packed.words.random_(-(2**31), 2**31 - 1)
    packed.scales.view(torch.uint8).random_(116, 124)
    packed.units.fill_(1.0)
    return packed


def _kv(num_blocks: int, block_size: int, dtype: torch.dtype) -> Tensor:
    return _random(2, num_blocks, KV_HEADS, block_size, HEAD_DIM).to(dtype)


def _suffix(kv_dtype: torch.dtype) -> str:
    return " fp8" if kv_dtype == torch.float8_e4m3fn else ""


def _decode_rows(count: int, length: int, kv_dtype: torch.dtype) -> Iterator[Row]:
    pages = -(-length // PAGE)

    def full() -> Callable[[], object]:
        tables = torch.randperm(count * pages, device=_DEVICE).int().view(count, pages)
        return attend(_kv(count * pages, PAGE, kv_dtype), tables, False)

    def window() -> Callable[[], object]:
        return attend(_kv(count, WINDOW, kv_dtype), torch.arange(count, device=_DEVICE).int().view(count, 1), True)

    def attend(kv: Tensor, tables: Tensor, ring: bool) -> Callable[[], object]:
        qkv, cos_sin = _random(count, QKV), _random(count, HEAD_DIM, dtype=torch.float32)
        lengths, sinks = torch.full((count,), length, device=_DEVICE, dtype=torch.int32), _random(HEADS)
        return lambda: attention.rope_decode_attention(qkv, cos_sin, kv, tables, lengths, sinks, ring=ring)

    for name, seen, make in (("full", length, full), ("window", min(length, WINDOW), window)):
        num_bytes = count * (seen * 2 * kv_dtype.itemsize * KV_HEADS * HEAD_DIM + 2 * (QKV + ATTENDED))
        num_ops = 4 * count * seen * ATTENDED
        yield Row(f"decode attention {name}{_suffix(kv_dtype)}", f"S={count} L={length}", num_bytes, num_ops, make)


def _prefill_rows(num_chunks: int, length: int, kv_dtype: torch.dtype) -> Iterator[Row]:
    count, pages = num_chunks * length, -(-length // PAGE)
    lengths, starts = [length] * num_chunks, [0] * num_chunks

    def integers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=_DEVICE)

    def make(window: int | None) -> Callable[[], object]:
        if window is None:
            kv, tables = _kv(num_chunks * pages, PAGE, kv_dtype), torch.arange(num_chunks * pages, device=_DEVICE).int()
        else:
            kv, tables = _kv(num_chunks, window, kv_dtype), torch.arange(num_chunks, device=_DEVICE).int()
        tables = tables.view(num_chunks, -1)
        q = _random(count, HEADS, HEAD_DIM)
        k, v = (_random(count, KV_HEADS, HEAD_DIM).to(kv_dtype) for _ in range(2))
        fresh = {} if window is None else {"window": window, "k": k, "v": v}
        cu_tokens, first, sinks = integers(range(0, count + 1, length)), integers(starts), _random(HEADS)
        tiles = attention.prefill_tiles(lengths, starts, HEADS // KV_HEADS).to(_DEVICE)
        return lambda: attention.prefill_attention(q, kv, tables, cu_tokens, first, sinks, tiles, **fresh)

    def rope() -> Callable[[], object]:
        qkv, cos_sin = _random(count, QKV), _random(count, HEAD_DIM, dtype=torch.float32)
        kv, where = _kv(num_chunks * pages, PAGE, kv_dtype), torch.arange(count, device=_DEVICE).int()
        return lambda: attention.rope_and_write(qkv, cos_sin, kv, where)

    shape, num_bytes = f"{num_chunks} x {length}", 2 * count * (QKV + ATTENDED)
    full_pairs, window_pairs = length * (length + 1) // 2, length * WINDOW - WINDOW * (WINDOW - 1) // 2
    for name, window, pairs in (("full", None, full_pairs), ("window", WINDOW, window_pairs)):
        num_ops = 4 * num_chunks * pairs * ATTENDED
        yield Row(
            f"prefill attention {name}{_suffix(kv_dtype)}",
            shape,
            num_bytes,
            num_ops,
            lambda window=window: make(window),
        )
    written = 2 * KV_HEADS * HEAD_DIM * kv_dtype.itemsize
    yield Row(f"rope_and_write{_suffix(kv_dtype)}", shape, count * (2 * QKV + 2 * ATTENDED + written), 0, rope)


def _gather_row(count: int) -> Row:
    length = 1024

    def integers(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=_DEVICE)

    def make() -> Callable[[], object]:
        numbers = torch.arange(count)
        sent = torch.stack([numbers, torch.full_like(numbers, length - 1), torch.full_like(numbers, length), numbers])
        rope, tables = _random(length, HEAD_DIM, dtype=torch.float32), integers(count, length // PAGE)
        embedding, last_tokens = _random(VOCAB, HIDDEN), integers(count)
        out = GatheredInputs.zeros(count, HIDDEN, HEAD_DIM, tables.shape[1], torch.bfloat16, torch.device(_DEVICE))
        sent = sent.int().to(_DEVICE)
        return lambda: gather(sent, last_tokens, embedding, None, rope, tables, page_size=PAGE, out=out)

    num_bytes = 2 * count * (2 * HIDDEN + 4 * HEAD_DIM + 4 * length // PAGE)
    return Row("gather", f"S={count}", num_bytes, 0, make)


def _sampling_row(count: int) -> Row:
    def make() -> Callable[[], object]:
        logits = _random(count, VOCAB, dtype=torch.float32)
        one, zero = (torch.full((count,), value, device=_DEVICE) for value in (1.0, 0.0))
        top_k, seeds = (torch.zeros(*shape, dtype=torch.int64, device=_DEVICE) for shape in ((count,), (count, 2)))
        return lambda: sample(logits, one, top_k, one, zero, seeds, top_k, truncated=False)

    return Row("sample", f"S={count}", 4 * count * VOCAB, 0, make)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name has this word")
    parser.add_argument("--tokens", type=lambda text: [int(part) for part in text.split(",")], default=TOKENS)
    parser.add_argument("--note", help="what is special about this run; keeps its lines")
    options = parser.parse_args()
    bytes_per_us, ops_per_us = ceilings()
    known = {
        "gpu": torch.cuda.get_device_name(),
        "copy_gb_s": round(bytes_per_us / 1e3, 1),
        "product_tflop_s": round(ops_per_us / 1e6, 1),
    }
    print(json.dumps(known), flush=True)
    for row in rows(options.tokens):
        if options.only in row.name:
            measured = measure(row, bytes_per_us, ops_per_us)
            print(json.dumps(measured), flush=True)
            if options.note is not None:
                append("kernels", environment() | {"note": options.note} | known | measured)


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
