"""After warming up no step compiles anything, whatever it is made of."""

import logging
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.launches import compiled_variants

from chorus_workers.guide.columns import Columns
from chorus_workers.model.checkpoint import load_model_as
from chorus_workers.model.config import read_config
from chorus_workers.runner.base import Batch, RunnerInfo, SampleRequest, SequenceChunk
from chorus_workers.runner.triton.form import DeviceForm
from chorus_workers.runner.triton.runner import TritonRunner
from chorus_workers.runner.triton.warm_up import warm_up, warm_up_batches
from chorus_workers.sampling_params import SamplingParams

# On a GPU whose cache is empty, all kernels are compiled.
_TIMEOUT_S = 600
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Experts and their choices as in gpt-oss-20b, by which tile sizes go; the rest is small.
SHAPE = Shape(
    num_layers=2,
    num_experts=32,
    num_experts_per_token=4,
    hidden_size=64,
    intermediate_size=32,
    num_heads=16,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=500,
)
AS_120B = replace(SHAPE, num_experts=128)
GPT_OSS_20B = replace(
    SHAPE, hidden_size=2880, intermediate_size=2880, num_heads=64, num_kv_heads=8, head_dim=64, vocab_size=20000
)
INFO = RunnerInfo(
    vocab_size=500,
    max_model_len=20_000,
    block_size=16,
    num_blocks=1300,
    num_slots=40,
    max_batched_tokens=9000,
    num_shards=1,
    num_snapshots=4,
)
SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(top_p=0.9),
    SamplingParams(temperature=0.7, top_k=5, num_top_logprobs=20),
    SamplingParams(num_top_logprobs=0, presence_penalty=0.5),
    SamplingParams(logit_bias={1: 1.0, 2: -1.0, 499: 3.0}, repetition_penalty=1.2, min_p=0.1),
)


def new_runner(folder: Path, shape: Shape, info: RunnerInfo, *, batch_invariant: bool = False) -> TritonRunner:
    model = load_model_as(DeviceForm(DEVICE), write_checkpoint(folder, shape))
    return TritonRunner(model, info, batch_invariant=batch_invariant)


@torch.inference_mode()
def warm(runner: TritonRunner) -> None:
    """As `TritonRunner.warm_up`, which does nothing on a CPU."""
    if DEVICE.type == "cuda":
        runner.warm_up()
        return
    runner._graphs.fill_with_padding()
    for size in runner._graphs._sizes:
        runner._graphs._forward(size)
    warm_up(runner, runner._transformer.model.config)


def random_batch(source: random.Random, info: RunnerInfo, vocab_size: int) -> Batch:
    """Decode and prefill in any mixture, as far as max_batched_tokens goes."""
    chunks, left = [], info.max_batched_tokens
    most_chunks = source.choice((1, 2, 8, info.num_slots))
    most_tokens = source.choice((1, 1, 8, 300, 9000))
    longest = min(source.choice((10, 60, 900, 5000, 20_000)), info.max_model_len)
    slots = source.sample(range(info.num_slots), source.randint(1, min(most_chunks, info.num_slots)))
    for snapshot, slot in enumerate(slots):
        num_tokens = source.randint(1, min(most_tokens, longest))
        start = source.randint(0, longest - num_tokens)
        if num_tokens > left:
            break
        left -= num_tokens
        pages = [source.randrange(info.num_blocks) for _ in range(-(-longest // info.block_size))]
        chunk = SequenceChunk(str(slot), slot, start, [5] * num_tokens, pages, None)
        if source.random() < 0.8:
            known = [7] * (start + num_tokens)
            chunk.sample = SampleRequest(source.choice(SAMPLINGS), known, len(known) // 2, len(known))
            if source.random() < 0.3:
                chunk.sample.mask = Columns(None, vocab_size).only(range(5, 50))
        if snapshot < info.num_snapshots and source.random() < 0.3:
            chunk.restore = snapshot
            chunk.saves = [(start + num_tokens, snapshot)] if num_tokens > 1 or chunk.sample is None else ()
        chunks.append(chunk)
    return Batch(chunks)


def check_nothing_is_compiled(runner: TritonRunner, num_batches: int) -> None:
    source, vocab_size = random.Random(0), runner._transformer.model.config.vocab_size
    with compiled_variants() as before:
        warm(runner)
    with compiled_variants() as after:
        for _ in range(num_batches):
            runner.run(random_batch(source, runner.info, vocab_size))
    assert after - before == set()


@pytest.mark.timeout(_TIMEOUT_S)
@pytest.mark.parametrize("shape", [SHAPE, AS_120B], ids=["32 experts", "128 experts"])
@pytest.mark.parametrize(
    "info",
    [INFO, replace(INFO, num_slots=3, max_model_len=700, max_batched_tokens=100)],
    ids=["many sequences", "few sequences"],
)
def test_no_step_compiles_a_kernel(tmp_path: Path, shape: Shape, info: RunnerInfo) -> None:
    runner = new_runner(tmp_path, shape, info)
    check_nothing_is_compiled(runner, 60)
    # Each number of tokens, up to where tile sizes are the same for all.
    with compiled_variants() as before:
        warm(runner)
    with compiled_variants() as after:
        for num_tokens in (*range(1, 33), *range(33, min(info.max_batched_tokens, 4500), 31)):
            lengths = [info.max_model_len] * (num_tokens // info.max_model_len) + [num_tokens % info.max_model_len]
            runner.run(Batch([SequenceChunk("", i, 0, [1] * n, range(n), None) for i, n in enumerate(lengths) if n]))
    assert after - before == set()
    if DEVICE.type == "cpu":
        assert before


@pytest.mark.timeout(_TIMEOUT_S)
def test_no_step_of_the_batch_invariant_mode_compiles_a_kernel(tmp_path: Path) -> None:
    info = replace(INFO, num_slots=20, max_model_len=3000, max_batched_tokens=600)
    check_nothing_is_compiled(new_runner(tmp_path, SHAPE, info, batch_invariant=True), 60)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(_TIMEOUT_S)
@pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")
def test_no_step_of_gpt_oss_compiles_a_kernel(tmp_path: Path) -> None:
    info = replace(INFO, vocab_size=20000, max_model_len=40_000, num_blocks=2500)
    check_nothing_is_compiled(new_runner(tmp_path, GPT_OSS_20B, info), 60)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(_TIMEOUT_S)
@pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    """Two processes with one cache on the disk. The first one's kernels are all that the second one launches."""
    write_checkpoint(tmp_path / "model", SHAPE)
    program = (
        "import pathlib, triton\n"
        "from tests.model.test_triton_warm_up import *\n"
        "compiled = []\n"
        "def listen(*, cache_hit, **_):\n"
        "    compiled.extend([1] * (not cache_hit))\n"
        "triton.knobs.compilation.listener = listen\n"
        f"runner = TritonRunner(load_model_as(DeviceForm(DEVICE), pathlib.Path({str(tmp_path / 'model')!r})), INFO)\n"
        "runner.warm_up()\n"
        "print(len(compiled))\n"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    counts = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
        assert result.returncode == 0, result.stderr
        counts.append(int(result.stdout.split()[-1]))
    assert counts[0] > 10 and counts[1] == 0


def test_the_steps_stay_within_what_a_runner_holds(tmp_path: Path) -> None:
    config = read_config(write_checkpoint(tmp_path, SHAPE))
    for info in (INFO, replace(INFO, num_slots=1, max_model_len=2, max_batched_tokens=1, num_blocks=1)):
        sizes = set()
        for batch in warm_up_batches(config, info, config.vocab_size):
            assert len({chunk.slot for chunk in batch.chunks}) == len(batch.chunks) <= info.num_slots
            for chunk in batch.chunks:
                end = chunk.start + len(chunk.token_ids)
                assert 0 <= chunk.slot < info.num_slots and end <= info.max_model_len
                assert end <= len(chunk.block_table) * info.block_size
                assert max(chunk.block_table) < info.num_blocks
            sizes.add(sum(len(chunk.token_ids) for chunk in batch.chunks))
        assert info.max_batched_tokens in sizes


def test_the_log_says_how_long_it_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner = new_runner(tmp_path, SHAPE, replace(INFO, num_slots=2, max_model_len=40, max_batched_tokens=20))
    with compiled_variants():
        warm_up(runner, runner._transformer.model.config)
    (record,) = caplog.records
    assert record.message.startswith("warmed up in ") and record.message.endswith(" steps")
