"""How the Triton runner comes to its device, as far as that can be seen without one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Shape, write_checkpoint

from chorus_workers.model.config import ModelConfig, read_config
from chorus_workers.model.weights import Shard
from chorus_workers.runner.config import RunnerConfig, device_page_bytes, resolve
from chorus_workers.runner.factory import create_runner
from chorus_workers.runner.kv_memory import kv_bytes
from chorus_workers.runner.triton.device import check_capability, check_kv_memory, check_memory
from chorus_workers.runner.triton.kv_memory import DeviceKVMemory

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
    assert resolve(CONFIG, model, 10_240 * 9).num_blocks == 9
    assert resolve(CONFIG, model, 10_240 * 9, torch.bfloat16).num_blocks == 18


def gpt_oss(tmp_path: Path, num_layers: int, num_experts: int) -> ModelConfig:
    model = read_config(write_checkpoint(tmp_path, Shape(num_layers=2)))
    windows = (128, None) * (num_layers // 2)
    return replace(model, num_heads=64, num_kv_heads=8, head_dim=64, num_experts=num_experts, windows=windows)


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("num_slots", [1, 32, 256])
@pytest.mark.parametrize(("num_layers", "num_experts", "free"), [(24, 32, 9 << 30), (36, 128, 15 << 30)])
def test_one_gpu_holds_a_whole_context_and_all_kv_fits(
    tmp_path: Path, num_layers: int, num_experts: int, free: int, num_slots: int, prefix_cache: bool
) -> None:
    """What 20b leaves of 24 GB, and 120b of 80 GB."""
    model = gpt_oss(tmp_path, num_layers, num_experts)
    config = replace(CONFIG, max_model_len=None, num_slots=num_slots, prefix_cache=prefix_cache)
    info = resolve(config, model, device_page_bytes(config, model, free, torch.bfloat16), torch.bfloat16)
    taken = kv_bytes(model, info, torch.bfloat16)
    assert info.max_model_len == 131072 and taken <= 0.85 * free
    assert num_slots == 1 or taken > 0.84 * free or info.num_blocks * 16 == num_slots * 8192


def test_a_gpu_that_is_full_is_told_in_blocks(tmp_path: Path) -> None:
    model = gpt_oss(tmp_path, 24, 32)
    with pytest.raises(ValueError, match="num_blocks 0 of 16 positions can't hold"):
        resolve(CONFIG, model, device_page_bytes(CONFIG, model, 1 << 20, torch.bfloat16), torch.bfloat16)


def test_more_kv_than_fits_is_refused_in_numbers(tmp_path: Path) -> None:
    model = gpt_oss(tmp_path, 24, 32)
    info = resolve(replace(CONFIG, num_blocks=10**6, num_slots=250), model, 0)
    memory = DeviceKVMemory(model, Shard(), info, torch.bfloat16, torch.device("meta"))
    taken = kv_bytes(model, info, torch.bfloat16)
    assert taken == sum(layer.nbytes for layer in memory.layers)
    check_kv_memory(taken, taken)
    with pytest.raises(ValueError, match=r"max_num_seqs ask for 412\.7 GiB of KV, and the GPU has 64\.0 GiB"):
        check_kv_memory(taken, 64 << 30)
