"""How the Triton runner comes to its device, as far as that can be seen without one."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import Shape, write_checkpoint

from chorus_workers.model.config import ModelConfig, read_config
from chorus_workers.model.weights import Shard
from chorus_workers.runner import factory
from chorus_workers.runner.config import RunnerConfig, device_page_bytes, resolve
from chorus_workers.runner.factory import create_runner
from chorus_workers.runner.kv_memory import kv_bytes
from chorus_workers.runner.triton import device, form
from chorus_workers.runner.triton.device import check_capability
from chorus_workers.runner.triton.form import DeviceForm
from chorus_workers.runner.triton.kv_memory import DeviceKVMemory
from chorus_workers.runner.triton.memory import MemoryNeeds, check_weights, explain_out_of_memory
from chorus_workers.runner.triton.runner import TritonRunner

CONFIG = RunnerConfig(
    "", max_model_len=100, block_size=16, num_blocks=None, num_slots=3, max_batched_tokens=64, runner="triton"
)


def test_old_gpus_are_refused_by_name() -> None:
    check_capability("NVIDIA A100", (8, 0))
    check_capability("NVIDIA H100", (9, 0))
    with pytest.raises(ValueError, match=r"^Tesla T4 has compute capability 7\.5; runner 'triton' needs 8\.0 or more"):
        check_capability("Tesla T4", (7, 5))


def test_fp8_kv_is_refused_by_name_where_the_gpu_cannot_convert() -> None:
    check_capability("NVIDIA L40S", (8, 9), "fp8_e4m3")
    check_capability("NVIDIA H100", (9, 0), "fp8_e4m3")
    with pytest.raises(
        ValueError,
        match=r"^NVIDIA A100 has compute capability 8\.0; kv_cache_dtype 'fp8_e4m3' needs 8\.9 .* 'auto' runs",
    ):
        check_capability("NVIDIA A100", (8, 0), "fp8_e4m3")
    with pytest.raises(ValueError, match="runner 'triton' needs 8"):
        check_capability("Tesla T4", (7, 5), "fp8_e4m3")


def test_fp8_kv_is_refused_by_the_reference_runner(tmp_path: Path) -> None:
    config = replace(CONFIG, model=str(write_checkpoint(tmp_path)), runner="reference", kv_cache_dtype="fp8_e4m3")
    with pytest.raises(ValueError, match="kv_cache_dtype is fp8_e4m3: runner 'reference' keeps KV in float32 only"):
        create_runner(config)


def test_weights_that_do_not_fit_are_told_in_numbers() -> None:
    check_weights(1 << 30, 1 << 30)
    with pytest.raises(ValueError, match=r"the weights take 60\.8 GiB, and the GPU has 20\.0 GiB free") as refusal:
        check_weights(int(60.8 * 2**30), 20 << 30)
    assert "a GPU with 62.8 GiB free would do, and so would gpt-oss-20b (12.9 GiB) on this one" in str(refusal.value)
    with pytest.raises(ValueError, match=r"a GPU with 62\.8 GiB free would do$"):
        check_weights(int(60.8 * 2**30), 8 << 30)


@pytest.fixture
def device_of_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's CPU in a GPU's place."""
    monkeypatch.setattr(device, "choose_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(factory, "_free_bytes", lambda _: 4 << 30)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)


@pytest.mark.usefixtures("device_of_4_gib")
def test_fp8_kv_has_twice_the_pages_in_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_free_bytes", lambda _: 32 << 20)
    config = replace(CONFIG, model=str(write_checkpoint(tmp_path)), max_model_len=4096, num_slots=64)
    plain, fp8 = (create_runner(replace(config, kv_cache_dtype=kind)) for kind in ("auto", "fp8_e4m3"))
    assert isinstance(plain, TritonRunner) and isinstance(fp8, TritonRunner)
    assert {memory.dtype for memory in plain.memory.layers} == {torch.bfloat16}
    assert {memory.dtype for memory in fp8.memory.layers} == {torch.float8_e4m3fn}
    # Rings and snapshots leave more room, too.
    assert 2 * plain.info.num_blocks < fp8.info.num_blocks < 2.5 * plain.info.num_blocks
    assert sum(memory.nbytes for memory in fp8.memory.layers) < 0.85 * (32 << 20)


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.usefixtures("device_of_4_gib")
def test_the_log_says_what_a_start_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner = create_runner(replace(CONFIG, model=str(write_checkpoint(tmp_path))))
    assert runner.info.max_model_len == 100
    loaded, ready = [record.message for record in caplog.records]
    assert re.fullmatch(r"loaded 0\.0 GB in \d+\.\d s \(0\.\d GB/s\)", loaded)
    assert re.fullmatch(
        r"ready in [\d.]+ s: [\d.]+ s for the weights, [\d.]+ s for KV memory, graphs and kernels", ready
    )


@pytest.mark.usefixtures("device_of_4_gib")
@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        (DeviceForm, "packed_experts", r"out of GPU memory: the weights take 0\.0 GiB, and the GPU has 4\.0 GiB free"),
        (
            TritonRunner,
            "__init__",
            "out of GPU memory: KV takes .* max_num_seqs 3 with num_blocks 14 would fit, or set",
        ),
        (TritonRunner, "warm_up", "out of GPU memory: KV takes .* a step of max_batched_tokens 64 about 0.0 GiB"),
    ],
)
def test_memory_that_runs_out_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: type, name: str, message: str
) -> None:
    monkeypatch.setattr(where, name, out_of_memory)
    with pytest.raises(ValueError, match=message):
        create_runner(replace(CONFIG, model=str(write_checkpoint(tmp_path)), num_blocks=16))


@pytest.mark.usefixtures("device_of_4_gib")
@pytest.mark.parametrize("spare", [0, 1])
def test_tiles_leave_the_kv_memory_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spare: int
) -> None:
    """KV takes all that is free, or leaves the one byte that tiles take here."""
    made, product_tiles = [], form.product_tiles
    config = replace(CONFIG, model=str(write_checkpoint(tmp_path)), num_blocks=5000)
    model = read_config(config.folder)
    asked = kv_bytes(model, resolve(config, model, 0), torch.bfloat16)
    monkeypatch.setattr(form, "product_tiles", lambda model: made.append(1) or product_tiles(model))
    monkeypatch.setattr(factory, "_free_bytes", lambda _: asked + spare - len(made))
    runner = create_runner(config)
    assert isinstance(runner, TritonRunner) and made and runner.info.num_blocks == 5000
    assert (runner._transformer._tiles.head is not None) == bool(spare)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    said = "no tiles of dense weights are kept: the KV memory asked for doesn't fit beside them"
    assert warnings == ([] if spare else [said])


@pytest.mark.usefixtures("device_of_4_gib")
def test_tiles_that_find_no_memory_are_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(form, "tiled", out_of_memory)
    runner = create_runner(replace(CONFIG, model=str(write_checkpoint(tmp_path))))
    assert isinstance(runner, TritonRunner) and runner._transformer._tiles.head is None
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == "no tiles of dense weights are kept: their 0.0 GB didn't fit"


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
    assert resolve(CONFIG, model, 10_240 * 9, torch.float8_e4m3fn).num_blocks == 19  # All that three requests can need.


def gpt_oss(tmp_path: Path, num_layers: int, num_experts: int) -> ModelConfig:
    model = read_config(write_checkpoint(tmp_path, Shape(num_layers=2)))
    windows = (128, None) * (num_layers // 2)
    return replace(model, num_heads=64, num_kv_heads=8, head_dim=64, num_experts=num_experts, windows=windows)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("num_slots", [1, 32, 256])
@pytest.mark.parametrize(("num_layers", "num_experts", "free"), [(24, 32, 9 << 30), (36, 128, 15 << 30)])
def test_one_gpu_holds_a_whole_context_and_all_kv_fits(
    tmp_path: Path,
    num_layers: int,
    num_experts: int,
    free: int,
    num_slots: int,
    prefix_cache: bool,
    kv_dtype: torch.dtype,
) -> None:
    """What 20b leaves of 24 GB, and 120b of 80 GB."""
    model = gpt_oss(tmp_path, num_layers, num_experts)
    config = replace(CONFIG, max_model_len=None, num_slots=num_slots, prefix_cache=prefix_cache)
    info = resolve(config, model, device_page_bytes(config, model, free, kv_dtype), kv_dtype)
    taken = kv_bytes(model, info, kv_dtype)
    assert info.max_model_len == 131072 and taken <= 0.85 * free
    assert num_slots == 1 or taken > 0.84 * free or info.num_blocks * 16 == num_slots * 8192


def needs(model: ModelConfig, free_bytes: int, **settings: int | None) -> MemoryNeeds:
    return MemoryNeeds(replace(CONFIG, **settings), model, free_bytes, torch.bfloat16)


@pytest.mark.parametrize("free_bytes", [1 << 20, 1 << 30, 3 << 30])
def test_a_context_that_does_not_fit_is_told_with_one_that_does(tmp_path: Path, free_bytes: int) -> None:
    model = gpt_oss(tmp_path, 24, 32)
    with pytest.raises(ValueError, match=r"max_model_len 131072 takes 3\.0 GiB of KV, and the GPU has ") as refusal:
        needs(model, free_bytes, max_model_len=None).resolve()
    if free_bytes == 1 << 20:
        assert str(refusal.value).endswith("take a larger GPU, or a smaller model")
        return
    (fits,) = re.findall(r"max_num_seqs 1 with max_model_len (\d+) would fit", str(refusal.value))
    assert needs(model, free_bytes, max_model_len=int(fits), num_slots=1).resolve().max_model_len == int(fits)


def test_more_kv_than_fits_is_refused_with_what_does(tmp_path: Path) -> None:
    model = gpt_oss(tmp_path, 24, 32)
    asked = {"num_blocks": 10**6, "num_slots": 250}
    info = resolve(replace(CONFIG, **asked), model, 0)
    memory = DeviceKVMemory(model, Shard(), info, torch.bfloat16, torch.device("meta"))
    taken = kv_bytes(model, info, torch.bfloat16)
    assert taken == sum(layer.nbytes for layer in memory.layers)
    assert needs(model, taken, **asked).resolve() == info
    with pytest.raises(
        ValueError, match=r"max_num_seqs ask for 412\.7 GiB of KV, and the GPU has 64\.0 GiB"
    ) as refusal:
        needs(model, 64 << 30, **asked).resolve()
    (fits,) = re.findall(r"max_num_seqs 250 with num_blocks (\d+) would fit", str(refusal.value))
    assert needs(model, 64 << 30, num_slots=250, num_blocks=int(fits)).resolve().num_blocks == int(fits)


def test_a_context_longer_than_the_model_s_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_model_len 200000 is more than the model's 131072 positions"):
        needs(gpt_oss(tmp_path, 24, 32), 64 << 30, max_model_len=200000).resolve()


@pytest.mark.parametrize("num_blocks", [None, 10_000])
def test_a_step_that_finds_no_memory_is_told_with_less_kv(tmp_path: Path, num_blocks: int | None) -> None:
    """Whether KV was asked for or is what was left, what is advised is less than what was too much."""
    model = replace(gpt_oss(tmp_path, 24, 32), vocab_size=201088, hidden_size=2880, intermediate_size=2880)
    tight = needs(model, 6 << 30, num_slots=64, num_blocks=num_blocks, max_batched_tokens=8192, max_model_len=8192)
    info = tight.resolve()
    with (
        pytest.raises(
            ValueError, match=r"out of GPU memory: KV takes \d\.\d GiB, a step of max_batched_tokens"
        ) as error,
        explain_out_of_memory(tight.step_does_not_fit(info)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    ((slots, blocks),) = re.findall(r"max_num_seqs (\d+) with num_blocks (\d+) would fit", str(error.value))
    assert "or set a lower max_batched_tokens" in str(error.value)
    assert int(slots) == 64 and 512 <= int(blocks) < info.num_blocks
    less = replace(tight, config=replace(tight.config, num_blocks=int(blocks))).resolve()
    assert kv_bytes(model, less, torch.bfloat16) + tight.step_bytes <= 6 << 30


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_whoever_finds_no_memory_is_understood(error: RuntimeError) -> None:
    with (
        pytest.raises(ValueError, match="^out of GPU memory: less would do$") as raised,
        explain_out_of_memory("less would do"),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="^else$"), explain_out_of_memory("no memory"):
        raise RuntimeError("else")
