"""The image's recipe and the chart agree. No image is built."""

import json
import re
import tomllib

import yaml
from tests.k8s.helm_cli import CHART, ROOT

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_it_copies_all_that_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {package.split("/")[0] for package in packages}
    copied = {path for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()}
    assert copied == needed
    assert all((ROOT / path).exists() for path in copied)
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{path}" for path in needed} <= set(ignored)


def test_user_is_the_charts() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    user, group = values["podSecurityContext"]["runAsUser"], values["podSecurityContext"]["runAsGroup"]
    assert f"USER {user}:{group}" in DOCKERFILE
    assert f"--uid {user} --user-group" in DOCKERFILE


def test_its_own_command_is_reached_from_outside() -> None:
    (command,) = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command) == ["chorus", "serve", "--host", "0.0.0.0"]


def test_tag_in_the_example_is_the_charts_default() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert f"--tag {values['image']['repository']}:{chart['appVersion']}" in DOCKERFILE


def test_versions_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    (ray,) = (dependency for dependency in project["dependencies"] if dependency.startswith("ray["))
    assert chart["appVersion"] == project["version"]
    assert ray.startswith(f"ray[serve]>={values['rayVersion'].rpartition('.')[0]},")
