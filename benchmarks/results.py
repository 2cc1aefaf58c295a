"""Results as tracked JSON lines, each with what one must know to compare it with another."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
# What a run itself adds is no change of what it measures.
_CHANGED = ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
_PACKAGES = ("ray", "grpcio", "fastapi", "uvicorn", "openai-harmony", "torch", "triton")


def environment() -> dict[str, object]:
    """Commit, machine (with its GPU, if it has one), versions, date, and how busy the machine was."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git(*_CHANGED) else ""),
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    } | gpu()


def gpu() -> dict[str, object]:
    """What a benchmark that has loaded PyTorch computes on; what the machine has, to others. Nothing without a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": _driver("driver_version")}
    if torch is None and (name := _driver("name")):
        return {"gpu": name, "driver": _driver("driver_version")}
    return {}


def append(name: str, row: dict[str, object]) -> None:
    """Adds a row to benchmarks/results/NAME.jsonl."""
    path = _ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(_ROOT), *arguments)


def _driver(key: str) -> str:
    """Of the first GPU, in the driver's words."""
    return _output("nvidia-smi", f"--query-gpu={key}", "--format=csv,noheader").partition("\n")[0]


def _output(*command: str) -> str:
    """Nothing, where there is no such command, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
