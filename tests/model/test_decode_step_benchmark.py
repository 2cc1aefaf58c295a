"""The benchmark of decode steps: processes that take turns, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest
from benchmarks import decode_step

ROOT = Path(__file__).parents[2]
TINY = ["decode_step", "--shape", "tiny", "--tokens", "2", "--context", "20"]


def test_two_trees_in_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("cluster", "workers", "kernels"):
        (copy / part).symlink_to(ROOT / part)
    monkeypatch.setattr(decode_step, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", [*TINY, "--tree", str(copy)])
    decode_step.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["tokens"], row["tree"]) for row in rows] == [(2, ROOT.name), (2, "copy")]
    assert all(row["bits"] and row["ms"] > 0 and row["ratio"] > 0 for row in rows)
    assert rows[0]["ratio"] == 1.0


def test_a_tree_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels" / "chorus_kernels"
    kernels.mkdir(parents=True)
    (kernels / "__init__.py").write_text("raise ImportError('not this one')")
    monkeypatch.setattr(sys, "argv", [*TINY, "--tree", str(tmp_path)])
    with pytest.raises(RuntimeError, match="ended with status 1"):
        decode_step.main()
