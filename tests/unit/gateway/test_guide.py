"""From a request's tools, tool choice and format to the guide that the engine gets."""

import json
from dataclasses import replace
from typing import Any

import pytest

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.guide import MAX_GRAMMAR_BYTES, build_guide
from chorus_cluster.gateway.openai.parse import parse_chat_body
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.harmony import headers
from chorus_cluster.harmony.conversation import InputGrammar, Tool
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.parser import StreamParser
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import CALL, END, ENDOFTEXT, RETURN, START

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
STOPS = [RETURN, CALL, ENDOFTEXT]


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def request(**fields: Any) -> ChatRequest:
    return parse_chat_body({"model": "m", "messages": [{"role": "user", "content": "?"}], **fields}).request


def guide(**fields: Any) -> engine_pb2.Guide:
    built = build_guide(request(**fields), header_guard=True).pb
    assert built is not None
    return built


def kinds(pb: engine_pb2.Guide) -> dict[str, set[str | None]]:
    """For each message that the guide allows, what its bodies follow: the source of a grammar, or nothing."""
    found: dict[str, set[str | None]] = {}
    for message in pb.messages:
        text = load_encoding().decode(list(message.header))
        name = next(
            word for word in ("to=functions.f", "to=functions.g", "analysis", "commentary", "final") if word in text
        )
        grammar = pb.grammars[message.grammar] if message.HasField("grammar") else None
        found.setdefault(name, set()).add(grammar and getattr(grammar, grammar.WhichOneof("grammar") or ""))
        assert message.is_reasoning == (name == "analysis")
        assert END in message.end_token_ids or grammar is not None
        stops = set(message.end_token_ids) & set(STOPS)
        assert bool(stops) == (name not in ("analysis", "commentary"))
    return found


F, G = tool("f", parameters=SCHEMA), tool("g", parameters=SCHEMA, strict=True)
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"analysis": {None}, "final": {None}}),
        ({"tools": [F]}, {"analysis": {None}, "commentary": {None}, "final": {None}, "to=functions.f": {None}}),
        ({"tools": [F], "tool_choice": "none"}, {"analysis": {None}, "final": {None}}),
        (
            {"tools": [F], "tool_choice": "required"},
            {"analysis": {None}, "to=functions.f": {None}},
        ),
        (
            {"tools": [F, G], "tool_choice": tool("f")},
            {"analysis": {None}, "to=functions.f": {None}},
        ),
        (
            {
                "tools": [F, G],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("g")]}},
            },
            {"analysis": {None}, "commentary": {None}, "final": {None}, "to=functions.g": {json.dumps(SCHEMA)}},
        ),
        ({"response_format": RESPONSE_FORMAT}, {"analysis": {None}, "final": {json.dumps(SCHEMA)}}),
        ({"response_format": {"type": "text"}}, {"analysis": {None}, "final": {None}}),
        ({"response_format": {"type": "json_object"}}, {"analysis": {None}, "final": {'{"type":"object"}'}}),
        ({"structured_outputs": {"regex": "a+"}}, {"analysis": {None}, "final": {"a+"}}),
        ({"structured_outputs": {"choice": ["a", 'b"']}}, {"analysis": {None}, "final": {'start: "a" | "b\\""'}}),
        ({"structured_outputs": {"grammar": "start: /x/"}}, {"analysis": {None}, "final": {"start: /x/"}}),
        ({"structured_outputs": {"json": "true"}}, {"analysis": {None}, "final": {"true"}}),
        (
            {"tools": [F, G], "response_format": RESPONSE_FORMAT},
            {
                "analysis": {None},
                "commentary": {None},
                "final": {json.dumps(SCHEMA)},
                "to=functions.f": {None},
                "to=functions.g": {json.dumps(SCHEMA)},
            },
        ),
    ],
)
def test_messages_that_may_come(fields: dict[str, Any], expected: dict[str, set[str | None]]) -> None:
    assert kinds(guide(**fields)) == expected


TEXT_CALLS = Tool("f", input_grammar=InputGrammar("lark", "start: /x+/"))


def test_calls_of_text_follow_their_grammar() -> None:
    asked = replace(request(), tools=(TEXT_CALLS, Tool("g", input_grammar=InputGrammar("regex", "y+"))))
    built = build_guide(asked, header_guard=False)
    assert built.pb is not None
    assert kinds(built.pb) == {
        "analysis": {None},
        "commentary": {None},
        "final": {None},
        "to=functions.f": {"start: /x+/"},
        "to=functions.g": {"y+"},
    }
    assert {grammar.WhichOneof("grammar") for grammar in built.pb.grammars} == {"lark", "regex"}
    calls = [message for message in built.pb.messages if message.HasField("grammar")]
    assert not any("json" in load_encoding().decode(list(call.header)) for call in calls)
    assert {tuple(call.end_token_ids) for call in calls} == {(CALL,)}
    index = next(i for i, message in enumerate(built.pb.messages) if message.HasField("grammar"))
    refused = InvalidRequest(f"guide.messages[{index}].grammar", "unknown name")
    assert built.explain(refused).field == "tools[0].function.format.definition"


def test_a_grammar_of_calls_that_are_not_allowed_is_not_made() -> None:
    asked = replace(
        request(tools=[F], tool_choice=tool("f")), tools=(*request(tools=[F]).tools, replace(TEXT_CALLS, name="g"))
    )
    built = build_guide(asked, header_guard=True).pb
    assert built is not None and not built.grammars


def test_who_must_call_reasons_once() -> None:
    assert guide(tools=[F], tool_choice="required").reasons_once
    assert guide(tools=[F], tool_choice=tool("f")).reasons_once
    assert not guide(tools=[F]).reasons_once


def test_the_budget_of_reasoning() -> None:
    assert not guide().HasField("max_reasoning_tokens")
    assert guide(thinking_token_budget=0).max_reasoning_tokens == 0
    assert kinds(guide(thinking_token_budget=7)) == {"analysis": {None}, "final": {None}}


def test_without_the_guard_only_what_was_asked_for_is_guided() -> None:
    assert build_guide(request(), header_guard=False).pb is None
    assert build_guide(request(tools=[F]), header_guard=False).pb is None
    for fields in ({"tools": [G]}, {"tools": [F], "tool_choice": "required"}, {"thinking_token_budget": 5}):
        assert build_guide(request(**fields), header_guard=False).pb is not None


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("tools", [request(tools=[F]).tools, (TEXT_CALLS,)])
def test_the_parser_reads_every_header_without_a_repair(is_first: bool, tools: tuple[Tool, ...]) -> None:
    asked = replace(request(response_format=RESPONSE_FORMAT), tools=tools)
    guide = build_guide(asked, header_guard=True).pb
    assert guide is not None
    for message in guide.messages:
        parser = StreamParser(["f"])
        before = [] if is_first else [*headers.analysis_header(), END, *headers.opening()]
        text = load_encoding().decode(list(message.header))
        end = CALL if "to=functions" in text else RETURN if "final" in text else END
        parser.feed([*before, *message.header, *load_encoding().encode("{}"), end])
        parser.finish()
        assert not parser.repairs, text


@pytest.mark.parametrize("name", ["f", "get_weather", "to", "-", "_", "a-", "9", "json", "X" * 64, "kebab-case_2"])
@pytest.mark.parametrize("is_text", [False, True])
def test_headers_of_calls_are_encoded_as_a_whole(name: str, is_text: bool) -> None:
    """The parts that they are put together from are cut where the tokenizer cuts."""
    for header in headers.call_headers(name, is_text=is_text):
        text = load_encoding().decode(list(header))
        assert header == tuple(load_encoding().encode(text, allowed_special="all"))
        assert f" to=functions.{name}" in text


def test_headers_go_on_from_the_prompt() -> None:
    assert headers.opening() == (START, *load_encoding().encode("assistant"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": RESPONSE_FORMAT}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"tools": [F, G]}, "tools[1].function.parameters"),
    ],
)
def test_the_engine_s_refusal_names_the_client_s_field(fields: dict[str, Any], field: str) -> None:
    built = build_guide(request(**fields), header_guard=True)
    assert built.pb is not None
    index = next(i for i, message in enumerate(built.pb.messages) if message.HasField("grammar"))
    refused = InvalidRequest(f"guide.messages[{index}].grammar", "no such key")
    assert built.explain(refused).field == field
    assert built.explain(refused).message == f"{field}: can't be enforced: no such key"
    other = InvalidRequest("sampling.top_p", "must be less")
    assert built.explain(other) is other


def test_a_grammar_has_a_largest_size() -> None:
    schema = {"enum": ["x" * MAX_GRAMMAR_BYTES]}
    with pytest.raises(InvalidRequest, match="at most 262144") as refused:
        guide(tools=[tool("f", parameters=schema, strict=True)])
    assert refused.value.field == "tools[0].function.parameters"
