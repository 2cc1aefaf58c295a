"""Guides as a worker takes them: what arrives, and what is refused by which name."""

from typing import Any

import pytest

from chorus_protos.v1 import engine_pb2
from chorus_workers.convert_guide import MAX_GRAMMAR_BYTES, guide_from_pb
from chorus_workers.engine.request import RefusalReason, Refused
from chorus_workers.guide.spec import Grammar, GrammarKind, GuidedMessage, GuideSpec
from chorus_workers.runner.base import RunnerInfo

INFO = RunnerInfo(
    vocab_size=100, max_model_len=64, block_size=4, num_blocks=16, num_slots=2, max_batched_tokens=8, num_shards=3
)
STOPS = frozenset({5, 6})
REASONING = {"header": [1, 2], "end_token_ids": [3], "is_reasoning": True}
ANSWER = {"header": [1, 4], "end_token_ids": [3, 5], "grammar": 1}
GRAMMARS = [{"json_schema": "{}"}, {"regex": "a"}, {"lark": 'start: "a"'}]


def framed(**fields: Any) -> engine_pb2.Guide:
    return engine_pb2.Guide(**{"opening": [9, 1], "messages": [REASONING, ANSWER], "grammars": GRAMMARS, **fields})


def bare(message: dict[str, Any], **fields: Any) -> engine_pb2.Guide:
    return engine_pb2.Guide(messages=[{"grammar": 0, **message}], grammars=GRAMMARS, **fields)


def test_every_field_arrives() -> None:
    regex = Grammar(GrammarKind.REGEX, "a")
    assert guide_from_pb(framed(max_reasoning_tokens=0, reasons_once=True), INFO, STOPS) == GuideSpec(
        opening=(9, 1),
        messages=(
            GuidedMessage((1, 2), frozenset({3}), None, is_reasoning=True),
            GuidedMessage((1, 4), frozenset({3, 5}), regex),
        ),
        max_reasoning_tokens=0,
        reasons_once=True,
    )
    assert guide_from_pb(framed(), INFO, STOPS).max_reasoning_tokens is None


def test_without_a_header_the_request_s_stop_tokens_end_the_answer() -> None:
    schema = Grammar(GrammarKind.JSON_SCHEMA, "{}")
    assert guide_from_pb(bare({}), INFO, STOPS) == GuideSpec((), (GuidedMessage((), STOPS, schema),))


@pytest.mark.parametrize(
    ("guide", "field"),
    [
        (framed(messages=[]), "guide.messages"),
        (framed(opening=[]), "guide.opening"),
        (framed(opening=[100]), "guide.opening"),
        (framed(grammars=[{}]), "guide.grammars[0]"),
        (framed(grammars=[{"regex": "a" * (MAX_GRAMMAR_BYTES + 1)}]), "guide.grammars[0]"),
        (framed(messages=[REASONING, ANSWER | {"grammar": 3}]), "guide.messages[1].grammar"),
        (framed(messages=[ANSWER | {"end_token_ids": []}]), "guide.messages[0].end_token_ids"),
        (framed(messages=[ANSWER | {"header": [100]}]), "guide.messages[0].header"),
        (framed(messages=[ANSWER, REASONING | {"header": []}]), "guide.messages"),
        (bare({}, opening=[1]), "guide"),
        (bare({}, reasons_once=True), "guide"),
        (bare({}, max_reasoning_tokens=1), "guide"),
        (bare({"end_token_ids": [5]}), "guide.messages[0]"),
        (bare({"is_reasoning": True}), "guide.messages[0]"),
        (bare({"grammar": 3}), "guide.messages[0].grammar"),
        (bare({"grammar": None}), "guide.messages[0].grammar"),
    ],
)
def test_what_is_refused_is_named(guide: engine_pb2.Guide, field: str) -> None:
    with pytest.raises(Refused) as refused:
        guide_from_pb(guide, INFO, STOPS)
    refusal = refused.value.refusal
    assert (refusal.reason, refusal.field) == (RefusalReason.INVALID_ARGUMENT, field)
    assert refusal.message.startswith(f"{field} ")


def test_an_answer_without_markup_needs_a_stop_token() -> None:
    with pytest.raises(Refused) as refused:
        guide_from_pb(bare({}), INFO, frozenset())
    assert refused.value.refusal.field == "sampling.stop_token_ids"
