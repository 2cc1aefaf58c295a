"""Reads what helm sends: Kubernetes' protobuf envelope (of the Secrets that helm keeps releases in), JSON or YAML.

The layout is that of k8s.io/apimachinery's runtime.Unknown (1: TypeMeta, 2: raw) and of k8s.io/api's core/v1 Secret
and ConfigMap (1: ObjectMeta, 2: data, 3: type).
"""

import base64
from collections.abc import Iterator
from typing import Any

import yaml

_MAGIC = b"k8s\0"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def decode(body: bytes) -> dict[str, Any]:
    """The object in a request's body."""
    if body.startswith(_MAGIC):
        return _decode_envelope(body[len(_MAGIC) :])
    # JSON is YAML.
    document: dict[str, Any] = yaml.load(body, Loader=yaml.CSafeLoader)
    return document


def _decode_envelope(body: bytes) -> dict[str, Any]:
    envelope = dict(_fields(body))
    api_version, kind = (part.decode() for _, part in sorted(_fields(envelope[1])))
    if kind not in ("Secret", "ConfigMap"):
        raise ValueError(f"no decoder for a protobuf {kind}")
    fields = list(_fields(envelope[2]))
    document = {"apiVersion": api_version, "kind": kind, "metadata": _decode_metadata(dict(fields)[1])}
    data = _map(value for number, value in fields if number == 2)
    if kind == "Secret":
        document["data"] = {key: base64.b64encode(value).decode() for key, value in data.items()}
        document["type"] = dict(fields).get(3, b"Opaque").decode()
    else:
        document["data"] = {key: value.decode() for key, value in data.items()}
    return document


def _decode_metadata(body: bytes) -> dict[str, Any]:
    fields = list(_fields(body))
    single = dict(fields)
    labels = {key: value.decode() for key, value in _map(value for number, value in fields if number == 11).items()}
    metadata = {"name": single[1].decode(), "namespace": single.get(3, b"").decode(), "labels": labels}
    return {key: value for key, value in metadata.items() if value}


def _map(entries: Iterator[bytes]) -> dict[str, bytes]:
    pairs = (dict(_fields(entry)) for entry in entries)
    return {pair[1].decode(): pair.get(2, b"") for pair in pairs}


def _fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Field numbers and payloads of a protobuf message; numbers, which nothing here needs, as empty payloads."""
    position = 0
    while position < len(body):
        tag, position = _varint(body, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length, position = _varint(body, position)
            yield number, body[position : position + length]
            position += length
        elif wire_type == _VARINT:
            _, position = _varint(body, position)
            yield number, b""
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
            yield number, b""
        else:
            raise ValueError(f"unknown protobuf wire type {wire_type}")


def _varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
