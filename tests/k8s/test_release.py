"""install, upgrade, rollback and uninstall against the API double, which refuses what does not fit its schema."""

from pathlib import Path

import pytest
import yaml
from tests.k8s.api_double import ApiDouble
from tests.k8s.helm_cli import Helm, HelmError


def worker_replicas(api: ApiDouble) -> int:
    (service,) = api.store.of_kind("RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    counts = {deployment["name"]: deployment["num_replicas"] for deployment in application["deployments"]}
    replicas: int = counts["Worker"]
    return replicas


def test_life_of_a_release(cluster_helm: Helm, api: ApiDouble) -> None:
    cluster_helm.install("life")
    (installed,) = api.store.of_kind("RayService")
    assert installed["metadata"]["name"] == "life-chorus"
    assert installed["metadata"]["namespace"] == "models"
    assert worker_replicas(api) == 1
    assert len(api.store.of_kind("ServiceAccount")) == 1
    assert len(api.store.of_kind("PodDisruptionBudget")) == 1

    cluster_helm.upgrade("life", {"config.workers.replicas": 2, "workerGroups.engine.replicas": 2})
    (upgraded,) = api.store.of_kind("RayService")
    assert upgraded["metadata"]["uid"] == installed["metadata"]["uid"]
    assert worker_replicas(api) == 2
    assert len(api.store.of_kind("PodDisruptionBudget")) == 2

    cluster_helm.run("rollback", "life", "1")
    (rolled_back,) = api.store.of_kind("RayService")
    assert rolled_back["spec"] == installed["spec"]
    assert worker_replicas(api) == 1
    assert len(api.store.of_kind("PodDisruptionBudget")) == 1

    cluster_helm.run("uninstall", "life")
    for kind in ("RayService", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Secret"):
        assert api.store.of_kind(kind) == []


def test_notes_say_where_it_listens(cluster_helm: Helm) -> None:
    cluster_helm.install("notes", {"config.model": {"path": "demo", "name": "tutor"}})
    notes = cluster_helm.run("get", "notes", "notes")
    assert "Chorus serves tutor" in notes
    assert '"model": "tutor"' in notes
    assert "service/notes-chorus-serve-svc 8000 9000" in notes
    assert "http://notes-chorus-serve-svc.models:8000/v1" in notes


def test_double_refuses_a_misspelled_field(cluster_helm: Helm, api: ApiDouble, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: misspelled, version: 0.0.1}")
    misspelled = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "misspelled"},
        "spec": {
            "serveConfig": "",
            "rayClusterConfig": {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "head"}]}}}},
        },
    }
    (chart / "templates" / "rayservice.yaml").write_text(yaml.safe_dump(misspelled))
    with pytest.raises(HelmError, match="'serveConfig' was unexpected"):
        cluster_helm.run("install", "misspelled", chart, "--disable-openapi-validation")
    assert api.store.of_kind("RayService") == []
