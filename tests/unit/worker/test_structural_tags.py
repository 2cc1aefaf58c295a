"""Structural tags as gateways make them for harmony models: the guides that they become, and what is refused."""

import json
from typing import Any

import pytest

from chorus_cluster.harmony import headers
from chorus_cluster.harmony.encoding import load_encoding
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import CALL, END, ENDOFTEXT, RETURN
from chorus_workers.vllm.tags import OPENING, TagError, guide_from_tag

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
JSON = {"type": "json_schema", "json_schema": SCHEMA}
FREE = {"type": "any_text"}
FINAL, ANALYSIS = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
# What a guide says of a message: its header, its ends, its grammar, whether it is reasoning.
REASONING = (ANALYSIS, {END}, None, True)


def tag(begin: str, content: Any = FREE, end: Any = "<|return|>") -> dict[str, Any]:
    return {"begin": begin, "content": content, "end": end}


def triggered(tags: list[Any], triggers: list[str], **fields: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags, **fields}


def one_of(*tags: dict[str, Any]) -> dict[str, Any]:
    return {"type": "or", "elements": [{"type": "tag", **one} for one in tags]}


def guide(form: Any, *, from_first_token: bool = False) -> engine_pb2.Guide:
    return guide_from_tag(json.dumps({"format": form}), from_first_token=from_first_token)


def messages(made: engine_pb2.Guide) -> list[tuple[str, set[int], Any, bool]]:
    assert tuple(made.opening) == headers.opening()
    return [
        (
            load_encoding().decode(message.header),
            set(message.end_token_ids),
            json.loads(made.grammars[message.grammar].json_schema) if message.HasField("grammar") else None,
            message.is_reasoning,
        )
        for message in made.messages
    ]


def forced_calls(*names: str, stop_after_first: bool) -> dict[str, Any]:
    """As the gateway smg asks for calls: each tag with and without what comes before it after reasoning."""
    begins = [
        f"{opening}<|channel|>commentary to=functions.{name}<|constrain|>json<|message|>"
        for name in names
        for opening in (OPENING, "")
    ]
    triggers = [f"{OPENING}<|channel|>commentary", "<|channel|>commentary"]
    tags = [tag(begin, JSON, "") for begin in begins]
    return triggered(tags, triggers, at_least_one=True, stop_after_first=stop_after_first)


@pytest.mark.parametrize("stop_after_first", [False, True])
def test_calls_that_a_gateway_forces(stop_after_first: bool) -> None:
    made = guide(forced_calls("get_weather", "find", stop_after_first=stop_after_first))
    begins = [
        f"<|channel|>commentary to=functions.{name}<|constrain|>json<|message|>" for name in ("get_weather", "find")
    ]
    assert messages(made) == [*((begin, {CALL}, SCHEMA, False) for begin in begins), REASONING]
    # Who must call and would rather not can't reason on and on.
    assert made.reasons_once
    assert len(made.grammars) == 1


def test_from_the_first_token_on_there_is_no_reasoning() -> None:
    form = forced_calls("f", stop_after_first=True)
    assert len(messages(guide(form, from_first_token=True))) == len(messages(guide(form))) - 1 == 1


def test_an_answer_in_json_behind_reasoning() -> None:
    """As smg asks for a response format."""
    constrained = "<|channel|>final<|constrain|>json<|message|>"
    tags = [tag(ANALYSIS, FREE, "<|end|>"), tag(constrained, JSON, "")]
    form = triggered(tags, ["<|channel|>analysis", "<|channel|>final"], at_least_one=True, stop_after_first=False)
    for from_first_token in (False, True):
        made = guide(form, from_first_token=from_first_token)
        assert messages(made) == [REASONING, (constrained, {RETURN}, SCHEMA, False)]


def test_tags_with_a_separator() -> None:
    """As xgrammar's own template for harmony has them."""
    calls = [
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
        " to=browser.search<|channel|>commentary code<|message|>",
    ]
    tags = [tag(begin, {**JSON, "any_order": False}, "<|call|>") for begin in calls]
    ends = ["<|end|>", "<|return|>"]
    tags += [tag(FINAL, FREE, ends), tag(ANALYSIS, FREE, ends)]
    form = {"type": "tags_with_separator", "tags": tags, "separator": OPENING}
    assert messages(guide(form)) == [
        *((begin, {CALL}, SCHEMA, False) for begin in calls),
        (FINAL, {END, RETURN}, None, False),
        REASONING,
    ]


@pytest.mark.parametrize("form", [{"type": "tag", **tag(FINAL, JSON, "")}, one_of(tag(FINAL, JSON, ["", "<|end|>"]))])
def test_one_tag_is_the_answer(form: dict[str, Any]) -> None:
    assert messages(guide(form)) == [(FINAL, {RETURN}, SCHEMA, False), REASONING]


def test_between_tags_that_need_not_come_there_are_harmony_s_messages() -> None:
    call = "<|channel|>commentary to=functions.f<|constrain|>json<|message|>"
    free_final = (FINAL, {END, RETURN, CALL, ENDOFTEXT}, None, False)
    preamble = ("<|channel|>commentary<|message|>", {END}, None, False)
    expected = {
        "<|channel|>commentary to=": [free_final, preamble, REASONING],
        # What a trigger begins must be a tag.
        "<|channel|>commentary": [free_final, REASONING],
        f"{OPENING}<|channel|>commentary": [free_final, REASONING],
        "<|channel|>": [],
    }
    for trigger, free in expected.items():
        begin = (OPENING if trigger.startswith(OPENING) else "") + call
        made = guide(triggered([tag(begin, JSON, "")], [trigger]))
        assert messages(made) == [(call, {CALL}, SCHEMA, False), *free]
        assert not made.reasons_once


def test_the_older_form() -> None:
    call = "<|channel|>commentary to=functions.f<|message|>"
    old = {"structures": [{"begin": call, "schema": SCHEMA, "end": "<|call|>"}], "triggers": ["<|channel|>comm"]}
    new = triggered([tag(call, JSON, "<|call|>")], ["<|channel|>comm"])
    assert guide_from_tag(json.dumps(old), from_first_token=False) == guide(new)


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        (JSON, engine_pb2.Grammar(json_schema=json.dumps(SCHEMA))),
        ({"type": "regex", "pattern": "a"}, engine_pb2.Grammar(regex="a")),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, engine_pb2.Grammar(lark='root ::= "a"')),
        ({"type": "const_string", "value": '"é'}, engine_pb2.Grammar(lark='start: "\\"\\u00e9"')),
    ],
)
def test_a_text_without_tags_is_the_whole_answer(form: dict[str, Any], grammar: engine_pb2.Grammar) -> None:
    assert guide(form) == engine_pb2.Guide(grammars=[grammar], messages=[engine_pb2.GuidedMessage(grammar=0)])


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({}, "format must have a 'type'"),
        (FREE, "format must be of one of the types"),
        ({"type": "sequence", "elements": [JSON]}, "format must be of one of the types"),
        ({**JSON, "style": "qwen_xml"}, "format.json_schema.style must be 'json'"),
        ({**JSON, "any_order": True}, "format.json_schema.any_order must be False"),
        ({**JSON, "later": 1}, "format.json_schema.later is not served"),
        (one_of(tag(FINAL, {**FREE, "max_tokens": 3})), ".max_tokens is not served"),
        (one_of(tag(FINAL, {**FREE, "excludes": ["a"]})), ".excludes must have at most 0 elements"),
        (one_of(), "format.or.elements must have at least 1 elements"),
        (one_of(tag("a" * 257)), ".begin must have at most 256 characters"),
        *((one_of(tag(begin)), "format.elements[0].begin must be one of harmony's headers") for begin in ("", "<f>")),
        (one_of(tag(f"{FINAL}so")), "format.elements[0].begin must be one of harmony's headers"),
        (one_of(tag(f"<|end|>{FINAL}")), "format.elements[0].begin must be one of harmony's headers"),
        (one_of(tag(f"{FINAL}{FINAL}")), "format.elements[0].begin must be one of harmony's headers"),
        (one_of(tag(FINAL, FREE, "</f>")), "format.elements[0].end must be one of '<|end|>'"),
        (one_of(tag(FINAL, FREE, [])), "format.elements[0].end must be one of '<|end|>'"),
        (one_of(tag(FINAL, FREE, "<|end|>")), "format.elements[0].end must have a stop token"),
        (one_of(tag(FINAL), tag(FINAL, JSON)), "format.elements[1].begin is another tag's"),
        (one_of(tag(ANALYSIS)), "it needs a tag, other than reasoning, that may end the answer"),
        (triggered([tag(FINAL, FREE, "<|end|>")], [FINAL], at_least_one=True), "it needs a tag, other than reasoning"),
        (triggered([tag(FINAL)], ["<|channel|>commentary"]), "format.tags[0].begin must begin with one of the trig"),
        (triggered([tag(FINAL)], [FINAL], excludes=["a"]), "format.triggered_tags.excludes must have at most 0"),
        ({"type": "tags_with_separator", "tags": [tag(FINAL)], "separator": ","}, "format.separator must be"),
    ],
)
def test_what_a_guide_cannot_say_is_refused(form: Any, says: str) -> None:
    with pytest.raises(TagError) as refused:
        guide(form)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "source", ["", "[]", '{"format": ', "[" * 100_000, '{"\\ud800": 1}', '{"structures": []}', "{}"]
)
def test_what_is_no_tag_is_refused(source: str) -> None:
    with pytest.raises(TagError) as refused:
        guide_from_tag(source, from_first_token=False)
    assert len(str(refused.value)) < 200
