"""Structural tags as JSON: xgrammar's format, as far as it is served. What a field says otherwise is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TAGS = 1024
MAX_BEGIN_LENGTH = 256


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class JsonSchema(_Strict):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] | bool
    style: Literal["json"] = "json"
    any_order: Literal[False] = False


class Regex(_Strict):
    type: Literal["regex"]
    pattern: str


class Ebnf(_Strict):
    type: Literal["grammar"]
    grammar: str


class ConstString(_Strict):
    type: Literal["const_string"]
    value: str


class AnyText(_Strict):
    type: Literal["any_text"]
    excludes: list[str] = Field(default=[], max_length=0)
    max_tokens: None = None
    max_chars: None = None


Text = JsonSchema | Regex | Ebnf | ConstString


class Tag(_Strict):
    type: Literal["tag"] = "tag"
    begin: str = Field(max_length=MAX_BEGIN_LENGTH)
    content: Annotated[Text | AnyText, Field(discriminator="type")]
    end: str | list[str]


Tags = Annotated[list[Tag], Field(min_length=1, max_length=MAX_TAGS)]


class TriggeredTags(_Strict):
    """Free text, in which each trigger begins one of the tags."""

    type: Literal["triggered_tags"]
    triggers: list[str] = Field(min_length=1, max_length=MAX_TAGS)
    tags: Tags
    # Whether the text begins with a tag.
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = Field(default=[], max_length=0)


class TagsWithSeparator(_Strict):
    type: Literal["tags_with_separator"]
    tags: Tags
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


class OneOf(_Strict):
    type: Literal["or"]
    elements: Tags


class StructuralTag(_Strict):
    type: Literal["structural_tag"] = "structural_tag"
    format: Annotated[Text | Tag | TriggeredTags | TagsWithSeparator | OneOf, Field(discriminator="type")]


class Structure(_Strict):
    begin: str = Field(max_length=MAX_BEGIN_LENGTH)
    # `schema` is a method of pydantic's.
    json_schema: dict[str, Any] | bool = Field(alias="schema")
    end: str


class Structures(_Strict):
    """An older form of triggered tags."""

    type: Literal["structural_tag"] = "structural_tag"
    structures: list[Structure] = Field(min_length=1, max_length=MAX_TAGS)
    triggers: list[str] = Field(min_length=1, max_length=MAX_TAGS)
