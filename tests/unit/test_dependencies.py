"""Bounds of dependencies that follow from what is committed."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "protos" / "chorus_protos"


def lower_bounds() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)", "\n".join(requirements), re.MULTILINE))


@pytest.mark.parametrize(
    ("package", "files", "pattern"),
    [
        ("grpcio", "*_pb2_grpc.py", r"^GRPC_GENERATED_VERSION = '(.+)'$"),
        ("grpcio-tools", "*_pb2_grpc.py", r"^GRPC_GENERATED_VERSION = '(.+)'$"),
        ("protobuf", "*_pb2.py", r"^# Protobuf Python Version: (.+)$"),
    ],
)
def test_the_oldest_that_may_be_installed_takes_the_generated_code(package: str, files: str, pattern: str) -> None:
    """It refuses, when it is imported, a library that is older than its generator."""
    sources = [path.read_text(encoding="utf-8") for path in GENERATED.rglob(files)]
    versions = {version for source in sources for version in re.findall(pattern, source, re.MULTILINE)}
    assert versions == {lower_bounds()[package]}
