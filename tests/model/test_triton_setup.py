"""How the Triton runner comes to its device, as far as that can be seen without one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Shape, write_checkpoint

from chorus_workers.model.config import read_config
from chorus_workers.runner.config import RunnerConfig, resolve
from chorus_workers.runner.factory import create_runner
from chorus_workers.runner.triton.device import check_capability, check_memory

CONFIG = RunnerConfig(
    "", max_model_len=100, block_size=16, num_blocks=None, num_slots=3, max_batched_tokens=64, runner="triton"
)


def test_old_gpus_are_refused_by_name() -> None:
    check_capability("NVIDIA A100", (8, 0))
    check_capability("NVIDIA H100", (9, 0))
    with pytest.raises(ValueError, match=r"^Tesla T4 has compute capability 7\.5; runner 'triton' needs 8\.0 or more"):
        check_capability("Tesla T4", (7, 5))


def test_weights_that_do_not_fit_are_told_in_numbers() -> None:
    check_memory(1 << 30, 1 << 30)
    with pytest.raises(ValueError, match=r"the weights take 60\.8 GiB, and the GPU has 20\.0 GiB free"):
        check_memory(int(60.8 * 2**30), 20 << 30)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runner 'triton' needs a GPU, and this process sees none; 'reference' runs"):
        create_runner(replace(CONFIG, model=str(write_checkpoint(tmp_path))))


def test_shards_are_the_reference_runner_s(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_shards is 2: runner 'triton' has one GPU"):
        create_runner(replace(CONFIG, model=str(write_checkpoint(tmp_path)), num_shards=2))


def test_pages_in_bfloat16_take_half_the_memory(tmp_path: Path) -> None:
    model = read_config(write_checkpoint(tmp_path, Shape(vocab_size=83)))
    free = 4 * 10_240 * 9
    assert resolve(CONFIG, model, free).num_blocks == 9
    assert resolve(CONFIG, model, free, torch.bfloat16).num_blocks == 18
