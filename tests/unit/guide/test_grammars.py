"""Grammars: what they let through is what was asked for, and what can't be asked for is refused with a reason."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from tests.support.grammars import EDITS, SOME_EDITS, is_edits

from chorus_cluster.harmony.encoding import load_encoding
from chorus_vocabulary import NUM_TEXT_TOKENS, VOCABULARY_SIZE
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.guide.columns import Columns
from chorus_workers.guide.grammars import GrammarError, Grammars, Matcher
from chorus_workers.guide.spec import Grammar, GrammarKind

OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 9},
        "tags": {"type": "array", "items": {"enum": ["red", 'gr"een', "bläu"]}, "minItems": 1, "maxItems": 3},
        "when": {"type": "string", "format": "date-time"},
        "size": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 1000}, {"type": "null"}]},
    },
    "required": ["name", "tags", "when", "size"],
    "additionalProperties": False,
}
RECURSIVE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    OBJECT,
    RECURSIVE,
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "x"}], "items": False, "minItems": 2},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 12},
    {"type": "number", "multipleOf": 0.5, "minimum": 1, "exclusiveMaximum": 9},
    {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 300}]},
    {"enum": [1, "two", None, {"three": [3]}]},
    # A format that JSON Schema doesn't define, beside properties and data that have its name.
    {
        "type": "object",
        "properties": {
            "format": {"type": "string", "format": "no-such", "maxLength": 4},
            "b": {"const": {"format": "c"}},
        },
        "required": ["format", "b"],
        "additionalProperties": False,
    },
]


@cache
def grammars() -> Grammars:
    return Grammars(Columns(None, VOCABULARY_SIZE))


def compiled(kind: GrammarKind, source: str) -> Matcher:
    return grammars().compile(Grammar(kind, source)).future.result().copy()


def schema(value: Any) -> Matcher:
    return compiled(GrammarKind.JSON_SCHEMA, json.dumps(value))


def write(matcher: Matcher, seed: int, most: int = 400) -> str | None:
    """A random text of a grammar; None if it was not at its end in time."""
    source, token_ids = np.random.default_rng(seed), list[int]()
    for _ in range(most):
        mask, may_end = grammars().mask(matcher)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
        assert may_end or len(allowed)
        assert not len(allowed) or allowed.max() < NUM_TEXT_TOKENS
        if may_end and (not len(allowed) or source.random() < 0.3):
            return b"".join(map(token_bytes, token_ids)).decode()
        # Short tokens more often than there are any, or strings and numbers would have no end.
        short = [int(column) for column in allowed if len(token_bytes(int(column))) < 3]
        token_ids.append(int(source.choice(short if short and source.random() < 0.8 else allowed)))
        matcher.consume(token_ids[-1])
    return None


@pytest.mark.parametrize("value", SCHEMAS, ids=lambda value: json.dumps(value)[:40])
def test_what_a_schema_lets_through_is_valid(value: dict[str, Any]) -> None:
    texts = [text for seed in range(25) if (text := write(schema(value), seed)) is not None]
    assert len(texts) > 5
    for text in texts:
        jsonschema.validate(json.loads(text), value, format_checker=jsonschema.FormatChecker())


def accepts(matcher: Matcher, text: str) -> bool:
    try:
        for token_id in load_encoding().encode(text, disallowed_special=()):
            matcher.consume(token_id)
    except GrammarError:
        return False
    return bool(matcher.native.is_accepting())


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ('{"name": "Ann", "tags": ["red"], "when": "2026-01-31T12:00:00Z", "size": null}', True),
        ('{"name":"Ann","tags":["red","gr\\"een"],"when":"2026-01-31T12:00:00Z","size":7}', True),
        ('{\n "name": "Ann",\n "tags": [\n "red"\n ],\n "when": "2026-01-31T12:00:00Z",\n "size": 7\n}', True),
        ('{"name": "\\u00c4nn", "tags": ["bläu"], "when": "2026-01-31T12:00:00Z", "size": 7}', True),
        ('{"name": "", "tags": ["red"], "when": "2026-01-31T12:00:00Z", "size": 7}', False),
        ('{"name": "Ann", "tags": [], "when": "2026-01-31T12:00:00Z", "size": 7}', False),
        ('{"name": "Ann", "tags": ["red"], "when": "2026-13-31T12:00:00Z", "size": 7}', False),
        ('{"name": "Ann", "tags": ["red"], "when": "2026-01-31T12:00:00Z", "size": 7.5}', False),
        ('{"name": "Ann", "tags": ["red"], "when": "2026-01-31T12:00:00Z", "size": 7, "more": 1}', False),
        ('{"name": "Ann", "tags": ["red"], "when": "2026-01-31T12:00:00Z", "size": 7} ', False),
    ],
)
def test_texts_of_a_schema(text: str, is_accepted: bool) -> None:
    assert accepts(schema(OBJECT), text) is is_accepted


@pytest.mark.parametrize(
    "text", [SOME_EDITS, f"{SOME_EDITS}\n", f"{SOME_EDITS}x", SOME_EDITS.replace("+new", "new"), ""]
)
def test_texts_of_a_grammar_of_edits(text: str) -> None:
    assert accepts(compiled(GrammarKind.LARK, EDITS), text) is is_edits(text)


def test_white_space_has_an_end() -> None:
    assert accepts(schema({"type": "array"}), "[\n" + " " * 32 + "1]")
    assert not accepts(schema({"type": "array"}), "[\n" + " " * 33 + "1]")
    assert not accepts(schema({"type": "array"}), "[\n\n\n1]")


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [
        (GrammarKind.REGEX, "[a-c]{3}(-[0-9]+)?", "[a-c]{3}(-[0-9]+)?"),
        (GrammarKind.LARK, 'start: "yes" | "no" SPACE "thanks"\nSPACE: " "+', "yes|no +thanks"),
        (GrammarKind.LARK, 'start: "quo\\"te" | "bläu"', 'quo"te|bläu'),
        # In EBNF.
        (GrammarKind.LARK, 'root ::= "a"{2,3} more?\n# More.\nmore ::= "-" ("\\x41" | [0-2])', "a{2,3}(-(A|[0-2]))?"),
    ],
)
def test_what_a_grammar_lets_through_is_of_its_language(kind: GrammarKind, source: str, pattern: str) -> None:
    texts = {text for seed in range(20) if (text := write(compiled(kind, source), seed)) is not None}
    assert len(texts) > 1
    assert all(re.fullmatch(pattern, text) for text in texts)


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        (GrammarKind.JSON_SCHEMA, '{"not": {}}', "not"),
        (GrammarKind.JSON_SCHEMA, '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        (GrammarKind.JSON_SCHEMA, '{"type": 5}', "type must be"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "https://example.org/schema"}', "none is fetched"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "file:///etc/passwd"}', "none is fetched"),
        (GrammarKind.JSON_SCHEMA, '{"type": "string", "format": "json-pointer"}', "json-pointer"),
        (GrammarKind.JSON_SCHEMA, "false", "nothing satisfies"),
        (GrammarKind.JSON_SCHEMA, "[]", "an object or a boolean"),
        (GrammarKind.JSON_SCHEMA, "{", "Expecting property name"),
        (GrammarKind.JSON_SCHEMA, "[" * 100_000, "nests too deeply"),
        (GrammarKind.JSON_SCHEMA, '{"x-guidance": {"lenient": true}, "not": {}}', "not"),
        (GrammarKind.REGEX, "(", "regex"),
        (GrammarKind.REGEX, "(?<=a)b", "regex"),
        (GrammarKind.LARK, "start: foo", "foo"),
        (GrammarKind.LARK, "start: <|end|>", "special token"),
        (GrammarKind.LARK, "root ::= more", "Rule 'more' not found"),
        (GrammarKind.LARK, 'more ::= "a"', "No 'root' rule"),
        (GrammarKind.LARK, 'root ::= "a', "Unexpected end of input"),
        (GrammarKind.LARK, f'root ::= {"(" * 4000}"a"{")" * 4000}', "nests too deeply"),
        (GrammarKind.LARK, f'root ::= "a"{{{"9" * 5000}}}', "a number in it is too large"),
        (GrammarKind.LARK, f'root ::= "{"a" * 20_000}"', "at most 16384 characters"),
    ],
)
def test_what_cannot_be_enforced_is_refused(kind: GrammarKind, source: str, says: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(says)) as refused:
        compiled(kind, source)
    assert 0 < len(str(refused.value)) < 320 and "\n" not in str(refused.value)


def test_markup_cannot_be_had_by_its_number() -> None:
    """A grammar may name tokens by their ids; those of markup are never allowed."""
    matcher = compiled(GrammarKind.LARK, f'start: <[{NUM_TEXT_TOKENS}-{VOCABULARY_SIZE - 1}]> | "a"')
    mask, may_end = grammars().mask(matcher)
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
    assert (allowed, may_end) == (load_encoding().encode("a"), False)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (GrammarKind.REGEX, "(a+)+b"),
        (GrammarKind.REGEX, "((a{1,300}){1,300}){1,300}"),
        (GrammarKind.REGEX, "(.*){1,50}x(.*){1,50}y"),
        (GrammarKind.JSON_SCHEMA, json.dumps({"enum": [f"value {i}" for i in range(20_000)]})),
        (GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": "^(a|b|ab)*c{1,1000}$"})),
        (GrammarKind.LARK, 'root ::= "a"{1,1000000000}'),
        (GrammarKind.LARK, "".join(f"a{i}::=a{i + 1}\n" for i in range(1200)) + 'a1200::="a"\nroot::=a0'),
    ],
)
@pytest.mark.timeout(20)
def test_what_explodes_ends_in_time(kind: GrammarKind, source: str) -> None:
    """Compiled or refused, and the first masks made: none of it takes the seconds that a backtracking engine would."""
    try:
        matcher = compiled(kind, source)
        write(matcher, seed=1, most=20)
    except GrammarError:
        pass


def test_a_grammar_is_compiled_once_and_copies_go_their_own_ways() -> None:
    grammar = Grammar(GrammarKind.REGEX, "ab|cd")
    assert grammars().compile(grammar) is grammars().compile(grammar)
    first, second = (grammars().compile(grammar).future.result().copy() for _ in range(2))
    for token_id in load_encoding().encode("ab"):
        first.consume(token_id)
    ends = [grammars().mask(matcher)[1] for matcher in (first, second)]
    assert ends == [True, False]


def test_the_tokenizer_is_the_model_s() -> None:
    """What a grammar forces is split as the model would split it."""
    compiled(GrammarKind.REGEX, "x")
    tokenizer = grammars()._tokenizer
    assert tokenizer is not None
    for text in (
        "Hello wörld's 12345 foo_bar\n\n  x",
        "漢字かな交じり文",
        "\treturn x**2  # ok!!\r\n",
        "I'LL we've \t end ",
        "😀👍🏽",
    ):
        assert tokenizer.tokenize_str(text) == load_encoding().encode(text)


@pytest.mark.parametrize("make", [lambda ids: ids, lambda ids: [*ids, *range(NUM_TEXT_TOKENS, NUM_TEXT_TOKENS + 9)]])
def test_a_small_vocabulary_writes_what_it_can(make: Callable[[Sequence[int]], Sequence[int]]) -> None:
    words = [load_encoding().encode(word)[0] for word in ("yes", "no", "y", "e", "s", "n", "o", " maybe")]
    token_ids = make(words)
    small = Grammars(Columns(token_ids, VOCABULARY_SIZE))
    matcher = small.compile(Grammar(GrammarKind.REGEX, "yes|no|never")).future.result().copy()
    mask, _ = small.mask(matcher)
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
    assert {token_bytes(token_ids[column]) for column in allowed} == {b"yes", b"y", b"no", b"n"}
    small.close()
