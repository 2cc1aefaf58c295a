"""The values' schema is closed and strict, and contradictions between values are refused with a reason."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate.utils
import pytest
import yaml
from tests.k8s.conftest import VALUE_FILES
from tests.k8s.helm_cli import CHART, Helm, HelmError
from tests.k8s.kube_schemas import KUBERNETES_VERSION

BOTH_ROLES = ["gateway", "engine"]
# Maps whose keys are the user's.
FREE_MAPS = {"#/properties/global", "#/$defs/stringMap", "#/$defs/quantities"}


@pytest.mark.parametrize("files", VALUE_FILES.values(), ids=VALUE_FILES)
def test_lint(helm: Helm, files: tuple[Any, ...]) -> None:
    arguments = [part for file in files for part in ("--values", file)]
    report = helm.run("lint", CHART, "--strict", *arguments)
    assert "1 chart(s) linted, 0 chart(s) failed" in report


def test_every_object_is_closed(values_schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(values_schema)
    objects = {path: schema for path, schema in walk(values_schema, "#") if schema.get("type") == "object"}
    is_open = {path for path, schema in objects.items() if schema.get("additionalProperties") is not False}
    assert is_open == FREE_MAPS


def walk(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All schemas inside a JSON schema, with their paths."""
    if isinstance(schema, dict):
        yield path, schema
        for key, value in schema.items():
            yield from walk(value, f"{path}/{key}")


def test_parts_copied_from_kubernetes_name_its_fields(values_schema: dict[str, Any]) -> None:
    """Those that say they are a Kubernetes type: each key exists there, and what is required there is here."""
    folder = f"kubernetes-json-schema/v{KUBERNETES_VERSION}.0-local-strict"
    definitions = kubernetes_validate.utils.schema_contents(f"{folder}/_definitions.json", KUBERNETES_VERSION)["$defs"]
    checked = 0
    for path, schema in walk(values_schema, "#"):
        marker, _, name = str(schema.get("description", "")).partition("Kubernetes: ")
        if marker or not name:
            continue
        theirs = definitions[name]
        assert schema["properties"].keys() <= theirs["properties"].keys(), path
        assert set(theirs.get("required", [])) <= set(schema.get("required", [])), path
        checked += 1
    assert checked >= 20


def test_every_default_is_documented_by_the_schema(values_schema: dict[str, Any]) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values.keys() == values_schema["properties"].keys() - {"global"}
    assert set(values_schema["required"]) == values.keys()


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("replicaCount", 2, "additional properties 'replicaCount' not allowed"),
        ("config.model.pth", "/models/x", "additional properties 'pth' not allowed"),
        ("config.workers.num_gpu", 1, "additional properties 'num_gpu' not allowed"),
        ("config.workers.kv.blocks", 1, "additional properties 'blocks' not allowed"),
        ("config.http", {"port": 1}, "additional properties 'http' not allowed"),
        ("image.tags", "x", "additional properties 'tags' not allowed"),
        ("workerGroups.engine.gpu", 1, "additional properties 'gpu' not allowed"),
        ("workerGroups.engine.tolerations", [{"kei": "x"}], "additional properties 'kei' not allowed"),
        ("workerGroups.engine.env", [{"name": "A", "valeu": "b"}], "additional properties 'valeu' not allowed"),
        ("workerGroups.Big", {}, "additional properties 'Big' not allowed"),
        ("workerGroups.engine.affinity", {"nodeAffinities": {}}, "additional properties 'nodeAffinities' not allowed"),
        ("securityContext.runAsRoot", True, "additional properties 'runAsRoot' not allowed"),
        ("probes.readiness.period", 1, "additional properties 'period' not allowed"),
        ("config.workers.replicas", "two", "got string, want integer"),
        ("config.workers.replicas", 0, "minimum: got 0, want 1"),
        ("config.workers.max_queued_requests", 2.5, "got number, want integer"),
        ("config.model.path", "models/relative", "does not match pattern"),
        ("config.logging.level", "LOUD", "value must be one of"),
        ("config.gateway", None, "missing property 'gateway'"),
        ("config.gateway.replicas", None, "missing property 'replicas'"),
        ("workerGroups.engine.roles", [], "minItems: got 0, want 1"),
        ("workerGroups.engine.shmSize", "8GB", "does not match pattern"),
        ("workerGroups.engine.resources.limits.cpu", "four", "does not match pattern"),
        ("ports.http", 70000, "maximum: got 70,000, want 65,535"),
        ("image.digest", "sha256:short", "does not match pattern"),
        ("service.type", "ExternalName", "value must be one of"),
        ("upgrade.type", "Recreate", "value must be one of"),
        ("dataPlane.haproxy", "yes", "got string, want boolean"),
        ("objectStoreBytes", 1024, "minimum: got 1,024"),
    ],
)
def test_refused_by_the_schema(helm: Helm, key: str, value: Any, complaint: str) -> None:
    with pytest.raises(HelmError, match="values don't meet the specifications") as refused:
        helm.template({key: value})
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"config.workers.shards": 2}, "of 2 GPUs each (shards x num_gpus, in one pod) do not fit"),
        ({"config.workers.replicas": 2}, "the pods of workerGroups hold 1"),
        ({"workerGroups.engine.gpus": 0}, "the pods of workerGroups hold 0"),
        (
            {"config.workers.num_gpus": 0, "workerGroups.gateway": None, "workerGroups.engine.roles": BOTH_ROLES},
            "no engine would use them",
        ),
        ({"workerGroups": {"engine": None, "gateway": None}}, "no group of workerGroups has the role gateway"),
        ({"modelVolume.existingClaim": "models"}, 'config.model.path is "demo", which is not on the model volume'),
        (
            {"modelVolume.existingClaim": "models", "config.model.path": "/models-old/x"},
            "it must be /models or a folder below it",
        ),
        ({"modelVolume": {"existingClaim": "a", "hostPath": "/b"}}, "existingClaim and hostPath are both set"),
        ({"modelVolume": {"hostPath": "/b", "subPath": "c"}}, "subPath is a folder of existingClaim"),
        (
            {"config.workers.num_gpus": 0, "workerGroups.engine.gpus": 0},
            "the roles of workerGroups.gateway must include engine",
        ),
        ({"workerGroups.engine.roles": ["gateway"]}, "workerGroups.engine has GPUs: its roles must include engine"),
        ({"workerGroups.gateway.roles": ["engine"]}, "no group of workerGroups has the role gateway"),
        ({"config.gateway.replicas": 3}, "gateways reserve 5 CPUs"),
        ({"workerGroups.gateway.resources.limits.cpu": "2500m", "config.gateway.replicas": 5}, "that take them have 6"),
        ({"config.workers.num_cpus": 10}, "gateways and engines reserve 13 CPUs"),
        ({"upgrade.surgePercent.engine": 1}, "2 engines (config.workers.replicas and upgrade.surgePercent.engine)"),
        ({"objectStoreBytes": 2 * 1024**3}, "objectStoreBytes (2147483648) does not fit into the shmSize of gateway"),
        ({"ports.http": 8080}, "ports.http is 8080, which Ray or HAProxy uses"),
        ({"ports.grpc": 9500}, "ports.grpc is 9500, which Ray or HAProxy uses"),
        ({"ports.http": 10002}, "ports.http is 10002, which Ray or HAProxy uses"),
        ({"ports.http": 30999}, "ports.http is 30999, which Ray or HAProxy uses"),
        ({"ports.grpc": 40000}, "ports.grpc is 40000, which Ray or HAProxy uses"),
        ({"ports.grpc": 8000}, "ports.http and ports.grpc are both 8000"),
        ({"fullnameOverride": "8-ball"}, '"8-ball" can\'t name a RayService'),
    ],
)
def test_refused_contradictions(helm: Helm, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HelmError) as refused:
        helm.template(values)
    assert complaint in str(refused.value)
