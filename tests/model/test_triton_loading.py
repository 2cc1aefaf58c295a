"""How weights come to the Triton runner's device: staging, progress, and what the form makes of them."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.support.checkpoints import Shape, random_tensors, write_checkpoint, write_tensors
from torch import Tensor

from chorus_kernels.linear.layout import tiled
from chorus_kernels.moe.layout import unpack_expert
from chorus_kernels.mxfp4 import unpack_mxfp4
from chorus_workers.model.checkpoint import CheckpointError, load_model_as
from chorus_workers.runner.triton.form import DeviceForm, product_tiles_within
from chorus_workers.runner.triton.progress import LoadProgress
from chorus_workers.runner.triton.staging import Staging

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 32, 33, 100])
def test_staging_copies_whatever_the_buffers_hold(size: int) -> None:
    copied: list[int] = []
    staging, source = Staging(DEVICE, copied.append, buffer_bytes=16), random_bytes(size)
    target = staging.copy(source)
    assert target.device.type == DEVICE.type and torch.equal(target.cpu(), source)
    assert target.data_ptr() != source.data_ptr() or size == 0
    assert sum(copied) == size and all(part <= 16 for part in copied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32])
def test_staging_keeps_shape_and_dtype(dtype: torch.dtype) -> None:
    staging = Staging(DEVICE, buffer_bytes=24)
    whole = torch.arange(60).to(dtype).view(3, 4, 5)
    for source in (whole, whole[1:, ::2], whole.transpose(0, 2), whole[0, 0, 0]):
        target = staging.copy(source)
        assert target.dtype == dtype and torch.equal(target.cpu(), source)


def test_a_copy_outlives_its_source_and_the_buffers() -> None:
    """The host goes on at once: whatever it does to the source, and to the buffers, what was copied stays."""
    staging, sources = Staging(DEVICE, buffer_bytes=1 << 20), [random_bytes(3 << 20) + i for i in range(20)]
    expected = [source.clone() for source in sources]
    targets = []
    for source in sources:
        targets.append(staging.copy(source))
        source.zero_()
    assert all(torch.equal(target.cpu(), clone) for target, clone in zip(targets, expected, strict=True))


def test_the_form_has_the_checkpoint_s_weights_and_tells_of_every_byte(tmp_path: Path) -> None:
    shape = Shape(num_layers=2, vocab_size=50)
    tensors = random_tensors(shape)
    copied: list[int] = []
    model = load_model_as(DeviceForm(DEVICE, on_copied=copied.append), write_checkpoint(tmp_path, shape))
    assert sum(copied) == sum(tensor.nbytes for tensor in tensors.values())
    assert torch.equal(model.embedding.cpu(), tensors["model.embed_tokens.weight"])
    down = "model.layers.1.mlp.experts.down_proj"
    expected = unpack_mxfp4(tensors[f"{down}_blocks"], tensors[f"{down}_scales"])
    for expert in range(shape.num_experts):
        assert torch.equal(unpack_expert(model.layers[1].down, expert).cpu(), expected[expert])


def test_a_scale_that_is_no_number_is_refused_by_the_tensor_s_name(tmp_path: Path) -> None:
    shape, name = Shape(num_layers=1, vocab_size=50), "model.layers.0.mlp.experts.down_proj_scales"
    write_checkpoint(tmp_path, shape)
    tensors = random_tensors(shape)
    tensors[name][3, 1, 0] = 255
    write_tensors(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=f"tensor {name}: a scale is 255"):
        load_model_as(DeviceForm(DEVICE), tmp_path)


def test_other_dtypes_become_the_form_s() -> None:
    source = torch.randn(3, 5)
    assert torch.equal(DeviceForm(DEVICE).dense(source).cpu(), source.bfloat16())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def load(progress: LoadProgress, clock: Clock, seconds: Sequence[float]) -> None:
    """A gigabyte, each in so many seconds."""
    with progress:
        for duration in seconds:
            clock.now += duration
            progress.add(10**9)


def test_a_log_has_a_line_every_few_seconds_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, stream = Clock(), io.StringIO()
    load(LoadProgress(4 * 10**9, Console(file=stream), clock), clock, [2, 2, 2, 2])
    assert [record.message for record in caplog.records] == [
        "loading: 3.0 of 4.0 GB (0.5 GB/s)",
        "loaded 4.0 GB in 8.0 s (0.5 GB/s)",
    ]
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_and_the_log_the_last_line_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    load(LoadProgress(2 * 10**9, console, clock), clock, [6, 4])
    assert [record.message for record in caplog.records] == ["loaded 2.0 GB in 10.0 s (0.2 GB/s)"]
    assert "Loading" in stream.getvalue() and "2.0/2.0 GB" in stream.getvalue()


def test_a_load_that_fails_is_not_told_as_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="broken"), LoadProgress(10, Console(file=io.StringIO())):
        raise ValueError("broken")
    assert not caplog.records


def test_tiles_are_kept_where_they_take_little_of_what_is_free(tmp_path: Path) -> None:
    model = load_model_as(DeviceForm(DEVICE), write_checkpoint(tmp_path))
    assert model.head is not None
    num_bytes = 2 * (model.head.numel() + sum(layer.qkv.numel() + layer.out.numel() for layer in model.layers))
    assert product_tiles_within(20 * num_bytes - 20, model) is None
    tiles = product_tiles_within(20 * num_bytes, model)
    assert tiles is not None and tiles.head is not None and torch.equal(tiles.head, tiled(model.head))
    for layer, qkv, out in zip(model.layers, tiles.qkv, tiles.out, strict=True):
        assert torch.equal(qkv, tiled(layer.qkv)) and torch.equal(out, tiled(layer.out))
