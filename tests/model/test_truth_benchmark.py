"""The benchmark of the distance to the truth, all of it: the reference in float32, Transformers, the Triton runner."""

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import truth
from benchmarks.damped import write_damped
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.triton_stand_ins import stand_in

from chorus_workers.model.checkpoint import load_model
from chorus_workers.runner.triton import transformer


def test_a_tiny_model_from_end_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch)
    # Both ways to the router's logits: for the decode steps, and for the chunks and the crowd.
    monkeypatch.setattr(transformer, "MAX_NORM_LINEAR_VALUES", 2 * 6)
    sizes = {"positions": 20, "chunk": 12, "decode": 10, "crowd": 10, "tokens": 2}
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    monkeypatch.setattr(sys, "argv", ["truth", "--model", "random", *arguments])
    assert truth.main() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["what"], row.get("positions")) for row in rows] == [
        ("prefill again", 20),
        ("crowd again", None),
        ("alone and in a crowd", 2),
        ("transformers", 20),
        ("transformers", 10),
        ("prefill", 20),
        *[("decode", 10)] * 4,
    ]
    assert [row["sequences"] for row in rows[6:]] == [1, 2, 4, 8]
    # bfloat16's steps are 2^-8, and a tiny model has few to add up.
    assert all(0 < row["relative_rms_p50"] < 0.03 for row in rows[3:])
    assert all(row["within"] for row in rows if row["what"] != "transformers")


def test_what_is_not_within_its_bound_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(truth, "rows", lambda folder, options: iter([{"what": "prefill", "within": False}]))
    monkeypatch.setattr(sys, "argv", ["truth", "--model", "random"])
    assert truth.main() == 1
    assert '"within": false' in capsys.readouterr().out


def test_damped_layers_add_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape()
    source = write_checkpoint(tmp_path / "source", shape, num_files=2)
    write_damped(source, tmp_path / "damped", 3)
    whole, damped = load_model(source), load_model(tmp_path / "damped")
    for layer, less in zip(whole.layers, damped.layers, strict=True):
        assert layer.out_bias is not None and less.out_bias is not None
        pairs = [(layer.out, less.out), (layer.out_bias, less.out_bias), (layer.down_bias, less.down_bias)]
        pairs += [(layer.down[expert], less.down[expert]) for expert in range(shape.num_experts)]
        for before, after in pairs:
            assert torch.equal(after, before / 8) and before.any()
        assert torch.equal(layer.qkv, less.qkv) and torch.equal(layer.gate_up[0], less.gate_up[0])
    with pytest.raises(ValueError, match="has a scale below 200"):
        write_damped(source, tmp_path / "more", 200)
    with pytest.raises(ValueError, match="has none of"):
        write_damped(write_checkpoint(tmp_path / "other", shape, layout="original"), tmp_path / "none", 1)
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(truth, "rows", lambda folder, options: seen.append((folder.parent.name, folder.name)) or [])
    monkeypatch.setattr(sys, "argv", ["truth", "--model", str(source), "--damp", "2"])
    assert truth.main() == 0 and seen[0][0] == tmp_path.name and seen[0][1] != source.name
