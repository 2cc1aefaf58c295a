"""tool_choice and text.format, as they are read."""

import json
from typing import Any

import pytest
from tests.support.responses import WEATHER

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.request import OutputFormat, ToolChoice
from chorus_cluster.gateway.responses.guides import read_text_format, read_tool_choice
from chorus_cluster.gateway.responses.models import ResponseTool
from chorus_cluster.gateway.responses.tools import read_tools
from chorus_cluster.harmony.conversation import ResponseFormat

NAMESPACE = {"type": "namespace", "name": "maps", "description": "", "tools": [WEATHER]}
PATCH = {"type": "custom", "name": "apply_patch"}
TOOLBOX = read_tools([ResponseTool.model_validate(tool) for tool in (WEATHER, PATCH, NAMESPACE)])
NAMED = {"type": "function", "name": "get_weather"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        (NAMED, ToolChoice("required", ("get_weather",))),
        ({"type": "custom", "name": "apply_patch"}, ToolChoice("required", ("apply_patch",))),
        (NAMED | {"namespace": "maps"}, ToolChoice("required", ("maps__get_weather",))),
        ({"type": "allowed_tools", "mode": "auto", "tools": [NAMED, NAMED]}, ToolChoice("auto", ("get_weather",))),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [NAMED, PATCH]},
            ToolChoice("required", ("get_weather", "apply_patch")),
        ),
    ],
)
def test_tool_choices(choice: Any, expected: ToolChoice) -> None:
    assert read_tool_choice(choice, TOOLBOX) == expected


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ("always", "tool_choice"),
        ({"type": "web_search"}, "tool_choice"),
        ({}, "tool_choice"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "other"}, "tool_choice.name"),
        ({"type": "allowed_tools", "mode": "none", "tools": [NAMED]}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [NAMED, 5]}, "tool_choice.tools[1].name"),
    ],
)
def test_tool_choices_that_are_none(choice: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        read_tool_choice(choice, TOOLBOX)
    assert error.value.field == field


def test_without_tools_none_is_required() -> None:
    with pytest.raises(InvalidRequest, match="no tools to call"):
        read_tool_choice("required", read_tools([]))


def test_text_formats() -> None:
    schema = {"type": "object", "properties": {"ä": {"type": "string"}}}
    assert read_text_format(None) is None
    assert read_text_format({"type": "text"}) is None
    assert read_text_format({"type": "json_object"}) == OutputFormat("json_schema", '{"type":"object"}', "text.format")
    found = read_text_format({"type": "json_schema", "name": "n", "schema": schema, "description": "d", "strict": True})
    source = json.dumps(schema)
    assert found == OutputFormat("json_schema", source, "text.format.schema", ResponseFormat("n", schema, "d"))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "type"),
        ({"type": "grammar"}, "type"),
        ({"type": "json_schema", "schema": {}}, "name"),
        ({"type": "json_schema", "name": "n"}, "schema"),
        ({"type": "json_schema", "name": "n", "schema": {}, "description": 5}, "description"),
    ],
)
def test_text_formats_that_are_none(value: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        read_text_format(value)
    assert error.value.field == f"text.format.{field}"
