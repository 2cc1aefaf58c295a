"""The benchmark of the distance to the truth, all of it: the reference in float32, Transformers, the Triton runner."""

import json
import sys

import pytest
from benchmarks import truth
from tests.support.triton_stand_ins import stand_in

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
        ("decode", 10),
    ]
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
