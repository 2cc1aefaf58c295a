"""Fixtures: a real helm, the chart's objects for several sets of values, and an API double to install into."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.k8s.api_double import ApiDouble
from tests.k8s.api_store import CORE_RESOURCES, custom_resources
from tests.k8s.helm_cli import CHART, Helm, Rendered, find_helm
from tests.k8s.kube_schemas import CRDS_VARIABLE, find_crds, load_crd

VALUES = Path(__file__).parent / "values"
# Sets of values that between them reach every branch of the templates.
VALUE_FILES: dict[str, tuple[Path, ...]] = {
    "defaults": (),
    "cpu": (CHART / "values-cpu.yaml",),
    **{path.stem: (path,) for path in sorted(VALUES.glob("*.yaml"))},
}


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Without a cluster."""
    folder = tmp_path_factory.mktemp("helm")
    return Helm(find_helm(folder), folder)


@pytest.fixture(scope="session")
def defaults(helm: Helm) -> Rendered:
    return helm.template()


@pytest.fixture(scope="session", params=VALUE_FILES)
def rendered(request: pytest.FixtureRequest, helm: Helm) -> Rendered:
    """The chart's objects, once for each set of values."""
    return helm.template(files=VALUE_FILES[request.param])


@pytest.fixture(scope="session")
def ray_service_crd() -> dict[str, Any]:
    crds = find_crds()
    if crds is None:
        pytest.skip(f"KubeRay's CRDs are not here: set {CRDS_VARIABLE} to the folder of ray.io_rayservices.yaml")
    return load_crd(crds / "ray.io_rayservices.yaml")


@pytest.fixture
def api(ray_service_crd: dict[str, Any]) -> Iterator[ApiDouble]:
    with ApiDouble([*CORE_RESOURCES, *custom_resources(ray_service_crd)]) as double:
        yield double


@pytest.fixture
def cluster_helm(api: ApiDouble, helm: Helm, tmp_path: Path) -> Helm:
    """With the API double as its cluster."""
    return Helm(helm.binary, tmp_path, api.write_kubeconfig(tmp_path / "kubeconfig"))


@pytest.fixture(scope="session")
def values_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return schema
