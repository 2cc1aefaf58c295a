"""An API double: as much of the Kubernetes API server as `helm install`, upgrade, rollback and uninstall talk to.

It listens on the loopback interface, keeps its objects in memory, and refuses an object that does not fit its schema.
There is no controller behind it: nothing runs.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml
from tests.k8s import wire
from tests.k8s.api_store import ApiError, Key, Object, Resource, Store
from tests.k8s.kube_schemas import KUBERNETES_VERSION

_VERBS = ["create", "delete", "get", "list", "patch", "update"]
_MERGE_PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")


class ApiDouble:
    """A server in threads of this process, for the time of a `with`."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self.store = Store(resources)
        handler = type("Handler", (_Handler,), {"store": self.store})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> Path:
        cluster = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "tester", "user": {}}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "tester"}}],
            "current-context": "double",
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path


@dataclass(frozen=True)
class _Target:
    """What a path names: a resource, a namespace (or none) and an object's name (or none)."""

    resource: Resource
    namespace: str
    name: str

    def key(self, name: str | None = None) -> Key:
        return Key(self.resource, self.namespace, name or self.name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An idle connection of helm's ends with the server, not after it.
    timeout = 5
    store: Store

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence: tests read errors from helm."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_PATCH(self) -> None:
        self._answer(self._patch)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, respond: Any) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            status, document = HTTPStatus.OK, respond(url.path.rstrip("/"), query, body)
        except ApiError as error:
            status, document = error.status, _failure(error)
        encoded = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _get(self, path: str, query: dict[str, str], body: bytes) -> Object:
        discovered = _discover(self.store.resources, path)
        if discovered is not None:
            return discovered
        target = self._target(path)
        if target.name:
            return self.store.get(target.key())
        return self.store.list(target.resource, target.namespace, query.get("labelSelector", ""))

    def _post(self, path: str, query: dict[str, str], body: bytes) -> Object:
        document = wire.decode(body)
        return self.store.create(self._target(path).key(document["metadata"]["name"]), document)

    def _put(self, path: str, query: dict[str, str], body: bytes) -> Object:
        return self.store.replace(self._target(path).key(), wire.decode(body))

    def _patch(self, path: str, query: dict[str, str], body: bytes) -> Object:
        key, kind = self._target(path).key(), self.headers.get("Content-Type", "")
        if kind == "application/apply-patch+yaml":
            return self.store.apply(key, wire.decode(body))
        if kind in _MERGE_PATCHES:
            return self.store.merge(key, wire.decode(body))
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", f"no patches of type {kind}")

    def _delete(self, path: str, query: dict[str, str], body: bytes) -> Object:
        return self.store.delete(self._target(path).key())

    def _target(self, path: str) -> _Target:
        """Reads /api/v1/… or /apis/GROUP/VERSION/…, then [namespaces/NAMESPACE/]PLURAL[/NAME]."""
        parts = path.strip("/").split("/")
        group_version, rest = (parts[1], parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        for resource in self.store.resources:
            if len(rest) in (1, 2) and (resource.group_version, resource.plural) == (group_version, rest[0]):
                return _Target(resource, namespace, rest[1] if len(rest) == 2 else "")
        raise ApiError(HTTPStatus.NOT_FOUND, "NotFound", f"the server could not find the requested resource {path}")


def _failure(error: ApiError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": error.reason,
        "code": error.status.value,
        "message": str(error),
    }


def _discover(resources: Sequence[Resource], path: str) -> Object | None:
    """The answers by which a client learns what a server knows; None for other paths."""
    group_versions = sorted({resource.group_version for resource in resources})
    if path == "/version":
        major, minor = KUBERNETES_VERSION.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{KUBERNETES_VERSION}.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups: dict[str, list[Object]] = {}
        for group_version in group_versions:
            group, slash, version = group_version.partition("/")
            if slash:
                groups.setdefault(group, []).append({"groupVersion": group_version, "version": version})
        listed = [{"name": name, "versions": found, "preferredVersion": found[0]} for name, found in groups.items()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    for group_version in group_versions:
        if path == ("/api/v1" if group_version == "v1" else f"/apis/{group_version}"):
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": group_version,
                "resources": [_described(found) for found in resources if found.group_version == group_version],
            }
    return None


def _described(resource: Resource) -> Object:
    return {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": _VERBS,
    }
