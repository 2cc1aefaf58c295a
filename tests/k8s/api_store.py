"""The state behind the API double: resources it knows, objects it holds, and how writes change and check them."""

import copy
import functools
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from tests.k8s.kube_schemas import InvalidObject, check_core, check_custom, crd_validators

Object = dict[str, Any]


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: HTTPStatus, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Resource:
    group_version: str
    kind: str
    plural: str
    namespaced: bool
    check: Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Key:
    """Which object; `namespace` is empty for what belongs to none."""

    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f'{self.resource.plural} "{self.name}"'


CORE_RESOURCES = (
    Resource("v1", "Namespace", "namespaces", False, check_core),
    Resource("v1", "ConfigMap", "configmaps", True, check_core),
    Resource("v1", "Pod", "pods", True, check_core),
    Resource("v1", "Secret", "secrets", True, check_core),
    Resource("v1", "Service", "services", True, check_core),
    Resource("v1", "ServiceAccount", "serviceaccounts", True, check_core),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", True, check_core),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", True, check_core),
)


def custom_resources(crd: Mapping[str, Any]) -> list[Resource]:
    """The resources of a CustomResourceDefinition, one for each served version."""
    names, namespaced = crd["spec"]["names"], crd["spec"]["scope"] == "Namespaced"
    return [
        Resource(
            group_version,
            names["kind"],
            names["plural"],
            namespaced,
            functools.partial(check_custom, validator=validator),
        )
        for group_version, validator in crd_validators(crd).items()
    ]


@dataclass
class Store:
    """Objects by key. Every method may be called from any thread."""

    resources: Sequence[Resource]
    _objects: dict[Key, Object] = field(default_factory=dict)
    _revision: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def get(self, key: Key) -> Object:
        with self._lock:
            if key not in self._objects:
                raise ApiError(HTTPStatus.NOT_FOUND, "NotFound", f"{key} not found")
            return copy.deepcopy(self._objects[key])

    def list(self, resource: Resource, namespace: str, selector: str) -> Object:
        with self._lock:
            items = [
                copy.deepcopy(document)
                for key, document in self._objects.items()
                if key.resource == resource and namespace in ("", key.namespace) and _selected(document, selector)
            ]
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.group_version,
            "metadata": {"resourceVersion": str(self._revision)},
            "items": items,
        }

    def of_kind(self, kind: str) -> Sequence[Object]:
        with self._lock:
            return [copy.deepcopy(found) for key, found in self._objects.items() if key.resource.kind == kind]

    def create(self, key: Key, document: Object) -> Object:
        with self._lock:
            if key in self._objects:
                raise ApiError(HTTPStatus.CONFLICT, "AlreadyExists", f"{key} already exists")
            return self._write(key, document)

    def replace(self, key: Key, document: Object) -> Object:
        with self._lock:
            self.get(key)
            return self._write(key, document)

    def apply(self, key: Key, document: Object) -> Object:
        """A server-side apply of the one field manager there is: what it no longer names, goes."""
        with self._lock:
            return self._write(key, document)

    def merge(self, key: Key, patch: Object) -> Object:
        """A JSON merge patch (RFC 7386)."""
        with self._lock:
            return self._write(key, _merged(self.get(key), patch))

    def delete(self, key: Key) -> Object:
        with self._lock:
            document = self.get(key)
            del self._objects[key]
            return document

    def _write(self, key: Key, document: Object) -> Object:
        written = copy.deepcopy(document)
        written.setdefault("apiVersion", key.resource.group_version)
        written.setdefault("kind", key.resource.kind)
        try:
            key.resource.check(written)
        except InvalidObject as error:
            message = f'{key.resource.kind} "{key.name}" is invalid: {error}'
            raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", message) from None
        previous = self._objects.get(key)
        self._revision += 1
        metadata = written["metadata"]
        metadata["resourceVersion"] = str(self._revision)
        metadata["uid"] = previous["metadata"]["uid"] if previous is not None else str(uuid.uuid4())
        if key.namespace:
            metadata["namespace"] = key.namespace
        self._objects[key] = written
        return copy.deepcopy(written)


def _selected(document: Mapping[str, Any], selector: str) -> bool:
    """Whether an object's labels fit `a=b,c!=d`; the other forms of selectors are refused."""
    labels = document["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        key, operator, value = term.replace("==", "=").partition("=")
        if not operator or "(" in term:
            raise ApiError(HTTPStatus.BAD_REQUEST, "BadRequest", f"label selector {selector!r} is not supported")
        wanted = not key.endswith("!")
        if (labels.get(key.rstrip("!").strip()) == value.strip()) != wanted:
            return False
    return True


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
