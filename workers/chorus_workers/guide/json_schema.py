"""JSON schemas, made ready for llguidance, which takes every `format` for a promise and refuses those it doesn't know.

To JSON Schema a format that it doesn't define is an annotation ("url", "binary", "color"): it is left out. One that it
defines stays, and is refused where it can't be enforced. Source: JSON Schema 2020-12, validation, section 7.
"""

import json
from collections.abc import Mapping
from typing import Any

_DEFINED_FORMATS = frozenset(
    {
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "idn-email",
        "hostname",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uuid",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    }
)
# Keywords whose values are schemas, lists of schemas, and objects of schemas; what stands in others (`enum`, `const`,
# `default`) is data.
_SCHEMAS = frozenset(
    {
        "additionalProperties",
        "additionalItems",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_SCHEMA_LISTS = frozenset(
    {
        "allOf",
        "anyOf",
        "oneOf",
        "prefixItems",
        "items",
    }
)
_SCHEMA_MAPS = frozenset(
    {
        "$defs",
        "definitions",
        "dependentSchemas",
        "patternProperties",
        "properties",
    }
)


def read_schema(source: str) -> dict[str, Any]:
    """An equal schema that is an object, without formats that mean nothing.

    Errors: ValueError for what is no JSON, no schema, or allows nothing.
    """
    try:
        schema = json.loads(source)
    except RecursionError:
        raise ValueError("the schema nests too deeply") from None
    if schema is True:
        return {}
    if schema is False:
        raise ValueError("nothing satisfies this schema")
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object or a boolean")
    _drop_formats(schema)
    return schema


def _drop_formats(root: dict[str, Any]) -> None:
    """In place, in the schema and in those inside of it."""
    left: list[Any] = [root]
    while left:
        schema = left.pop()
        if not isinstance(schema, dict):
            continue
        if isinstance(schema.get("format"), str) and schema["format"] not in _DEFINED_FORMATS:
            del schema["format"]
        for keyword, value in schema.items():
            if keyword in _SCHEMA_LISTS and isinstance(value, list):
                left += value
            elif keyword in _SCHEMAS:
                left.append(value)
            elif keyword in _SCHEMA_MAPS and isinstance(value, Mapping):
                left += value.values()
