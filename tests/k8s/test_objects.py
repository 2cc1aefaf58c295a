"""Every object that the chart renders fits its schema strictly, for every set of values."""

from typing import Any

import pytest
from tests.k8s.helm_cli import Rendered
from tests.k8s.kube_schemas import InvalidObject, check_core, check_custom, crd_validators


def test_core_objects(rendered: Rendered) -> None:
    core = [document for document in rendered.objects if document["apiVersion"] != "ray.io/v1"]
    assert core
    for document in core:
        check_core(document)


def test_pods_of_the_cluster(rendered: Rendered) -> None:
    """The pod templates and the service inside the RayService, as KubeRay will create them."""
    for name, template in rendered.pod_templates.items():
        metadata = {"name": name, **template["metadata"]}
        check_core({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    check_core({"apiVersion": "v1", "kind": "Service", **rendered.spec["serveService"]})


def test_ray_service(rendered: Rendered, ray_service_crd: dict[str, Any]) -> None:
    check_custom(rendered.ray_service, crd_validators(ray_service_crd)["ray.io/v1"])


def test_check_finds_misspelled_fields(defaults: Rendered, ray_service_crd: dict[str, Any]) -> None:
    validator = crd_validators(ray_service_crd)["ray.io/v1"]
    service = defaults.ray_service
    for wrong in (
        service | {"spec": service["spec"] | {"rayClusterDeletionDelay": 1}},
        service | {"spec": service["spec"] | {"rayClusterDeletionDelaySeconds": "60"}},
        service | {"metadata": service["metadata"] | {"label": {}}},
        service | {"sepc": {}},
    ):
        with pytest.raises(InvalidObject):
            check_custom(wrong, validator)
    (account,) = defaults.of_kind("ServiceAccount")
    with pytest.raises(InvalidObject, match="automountServiceAccountTokens"):
        check_core(account | {"automountServiceAccountTokens": False})


def test_names_are_unique_and_in_the_release_namespace(rendered: Rendered) -> None:
    names = [(document["kind"], document["metadata"]["name"]) for document in rendered.objects]
    assert len(names) == len(set(names))
    assert {document["metadata"]["namespace"] for document in rendered.objects} == {"models"}


def test_selectors_select_their_pods(rendered: Rendered) -> None:
    """Budgets and policies name labels that the pods have."""
    templates = rendered.pod_templates
    for budget in rendered.of_kind("PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        selected = [name for name, template in templates.items() if wanted <= template["metadata"]["labels"].items()]
        assert selected == [wanted_component(budget)]
    for policy in rendered.of_kind("NetworkPolicy"):
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        assert all(wanted <= template["metadata"]["labels"].items() for template in templates.values())


def wanted_component(budget: dict[str, Any]) -> str:
    component: str = budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
    return component
