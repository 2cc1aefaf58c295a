"""Strict checks of Kubernetes objects: an unknown field is an error, as with the API server's fieldValidation=Strict.

Core objects are checked against Kubernetes' own OpenAPI (package kubernetes-validate), KubeRay's against the schema in
its CustomResourceDefinitions.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from tests.k8s.helm_cli import ROOT

KUBERNETES_VERSION = "1.37"
CRDS_VARIABLE = "CHORUS_KUBERAY_CRDS"
_MAX_ERRORS = 5


class InvalidObject(Exception):
    """An object does not fit its schema; the message names paths and reasons."""


def find_crds() -> Path | None:
    """The folder of KubeRay's CRDs: $CHORUS_KUBERAY_CRDS, or shared/k8s/crds beside the checkout; None if absent."""
    folder = Path(os.environ.get(CRDS_VARIABLE) or ROOT.parent / "shared" / "k8s" / "crds")
    return folder if (folder / "ray.io_rayservices.yaml").is_file() else None


def load_crd(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        crd: dict[str, Any] = yaml.load(file, Loader=yaml.CSafeLoader)
    return crd


def crd_validators(crd: Mapping[str, Any]) -> dict[str, jsonschema.Draft202012Validator]:
    """A strict validator for each served version of a CustomResourceDefinition, by `group/version`."""
    spec = crd["spec"]
    return {
        f"{spec['group']}/{version['name']}": jsonschema.Draft202012Validator(
            _strict(version["schema"]["openAPIV3Schema"])
        )
        for version in spec["versions"]
        if version["served"]
    }


def check_custom(document: Mapping[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    """Errors: InvalidObject."""
    check_core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]})
    without = {key: value for key, value in document.items() if key not in ("metadata", "status")}
    errors = sorted(validator.iter_errors(without), key=lambda error: [str(part) for part in error.absolute_path])
    if errors:
        raise InvalidObject("; ".join(f"{error.json_path}: {error.message[:200]}" for error in errors[:_MAX_ERRORS]))


def check_core(document: Mapping[str, Any]) -> None:
    """Errors: InvalidObject."""
    without = {key: value for key, value in document.items() if key != "status"}
    try:
        kubernetes_validate.validate(without, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise InvalidObject(f"{error.json_path}: {error.message[:200]}") from None
    except kubernetes_validate.SchemaNotFoundError as error:
        raise InvalidObject(error.message) from None


def _strict(schema: Any) -> Any:
    """A CRD's structural schema as a JSON schema that refuses what the API server would prune."""
    if not isinstance(schema, dict):
        return schema
    strict = dict(schema)
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    if strict.get("nullable") and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    if "properties" in strict:
        strict["properties"] = {name: _strict(value) for name, value in strict["properties"].items()}
        if not strict.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if key in strict:
            strict[key] = _strict(strict[key])
    return strict
