"""What a result says of where it was taken."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import results

RESULTS = Path(results.__file__).with_name("results")


def torch_that_sees(name: str | None) -> SimpleNamespace:
    cuda = SimpleNamespace(is_available=lambda: name is not None, get_device_name=lambda: name)
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"))


def with_driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "nvidia-smi"
    command.write_text('#!/bin/sh\ncase $1 in *=name) echo "NVIDIA H200"; echo "NVIDIA H200";; *) echo 580.1;; esac\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_pytorch_names_the_gpu_that_it_computes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", torch_that_sees("NVIDIA H100 80GB HBM3"))
    assert results.gpu() == {"gpu": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "driver": "580.1"}


def test_the_driver_names_it_to_benchmarks_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert results.gpu() == {"gpu": "NVIDIA H200", "driver": "580.1"}
    assert "torch" not in sys.modules


def test_without_a_gpu_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", torch_that_sees(None))
    assert results.gpu() == {}
    monkeypatch.delitem(sys.modules, "torch")
    assert results.gpu() == {}
    # Nor are git's answers.
    assert results.environment()["commit"] == ""


def test_every_row_says_when_and_what_was_measured() -> None:
    assert {"date", "commit", "machine", "versions"} <= results.environment().keys()
    rows = [json.loads(line) for file in RESULTS.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert rows
    for row in rows:
        assert {"date", "commit", "machine", "versions"} <= row.keys()
        assert row["versions"]["torch"]
