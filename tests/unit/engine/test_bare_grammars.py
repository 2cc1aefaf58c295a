"""Requests whose answer is one grammar's text, with no markup around it."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import jsonschema
import pytest
from tests.unit.engine.support import VOCAB_SIZE, ask, build_engine, run_all

from chorus_vocabulary import CALL, CHANNEL, END, MESSAGE, RETURN, START
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest, RefusalReason
from chorus_workers.guide.spec import Grammar, GrammarKind, GuidedMessage, GuideSpec

CLOSE = next(token_id for token_id in range(1000) if token_bytes(token_id) == b"}")
CHARACTERS = [next(i for i in range(1000) if token_bytes(i) == character.encode()) for character in '{":,abntrue01[] ']
# As many as the simulated runner draws from; the rest is text that no grammar here allows.
TOKEN_IDS = [START, CHANNEL, MESSAGE, END, RETURN, CALL, CLOSE, *CHARACTERS, *range(500, 550)][:VOCAB_SIZE]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [True, 10, "bun"]}, "b": {"type": "array", "items": {"const": 0}, "maxItems": 0}},
    "required": ["a"],
    "additionalProperties": False,
}
GRAMMAR = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))


def bare(
    count: int, grammar: Grammar = GRAMMAR, *, stops: Sequence[int] = (RETURN, CALL), max_tokens: int = 60
) -> list[GenerationRequest]:
    spec = GuideSpec((), (GuidedMessage((), frozenset(stops), grammar),))
    asked = [ask(f"{seed}", max_tokens=max_tokens, seed=seed, guide=spec) for seed in range(count)]
    return [replace(a, params=replace(a.params, stop_token_ids=frozenset(stops))) for a in asked]


def build(**settings: object) -> Engine:
    return build_engine(token_ids=TOKEN_IDS, max_queued_requests=1000, **settings)[0]  # type: ignore[arg-type]


def answers(engine: Engine, asked: Sequence[GenerationRequest]) -> Mapping[str, tuple[list[int], FinishReason]]:
    """Asks when the grammars are compiled, so that all are in the same steps."""
    for request in asked:
        engine.guides.prepare(request)
    while engine.guides.num_waiting:
        for prepared in engine.guides.take_ready():
            assert prepared.is_ready
        time.sleep(0.001)
    for request in asked:
        engine.add(request)
    gathered = run_all(engine)
    return {request_id: (gathered.tokens[request_id], reason) for request_id, reason in gathered.finished.items()}


def text(tokens: Sequence[int]) -> str:
    return b"".join(map(token_bytes, tokens)).decode()


def test_the_answer_is_the_grammar_s_text_and_a_stop_token() -> None:
    found = answers(build(overlaps=True), bare(100))
    assert {reason for _, reason in found.values()} == {FinishReason.STOP}
    texts = {text(tokens[:-1]) for tokens, _ in found.values()}
    for one in texts:
        jsonschema.validate(json.loads(one), SCHEMA)
    assert {json.loads(one)["a"] for one in texts} == {True, 10, "bun"}
    assert {tokens[-1] for tokens, _ in found.values()} == {RETURN, CALL}


def test_it_is_what_it_is_whoever_else_is_in_the_steps() -> None:
    asked = bare(40)
    alone = {a.request_id: answers(build(), [a])[a.request_id] for a in asked}
    for settings in ({}, {"overlaps": True}, {"overlaps": True, "num_blocks": 16, "num_slots": 4}):
        engine = build(**settings)
        assert answers(engine, asked) == alone
        assert engine.stats.guide_interventions.keys() == {"grammar"}
        assert bool(engine.stats.num_preemptions) == ("num_blocks" in settings)
        engine.check_integrity()


def test_it_goes_on_elsewhere_as_it_would_have() -> None:
    for asked in bare(10):
        (tokens, reason) = answers(build(overlaps=True), [asked])[asked.request_id]
        for cut in (1, len(tokens) // 2, len(tokens) - 1):
            prompt = [*asked.prompt_token_ids, *tokens[:cut]]
            resumed = replace(asked, prompt_token_ids=prompt, num_resumed_tokens=cut)
            assert answers(build(), [resumed]) == {asked.request_id: (tokens[cut:], reason)}


def test_the_limit_cuts_it() -> None:
    for tokens, reason in answers(build(), bare(10, max_tokens=4)).values():
        assert (len(tokens), reason) == (4, FinishReason.LENGTH)
        assert re.match(r'\{ ?"a', text(tokens))


def test_a_stop_token_that_is_text_ends_it_where_that_text_may_come() -> None:
    for tokens, reason in answers(build(), bare(20, stops=[CLOSE])).values():
        assert (tokens[-1], reason) == (CLOSE, FinishReason.STOP)
        assert tokens.count(CLOSE) == 1
        json.loads(text(tokens))


def test_a_text_that_may_be_empty_may_be_none() -> None:
    found = answers(build(), bare(50, Grammar(GrammarKind.REGEX, "a{0,2}")))
    assert {text(tokens[:-1]) for tokens, _ in found.values()} == {"", "a", "aa"}


@pytest.mark.parametrize(
    ("grammar", "stops", "field"),
    [
        (Grammar(GrammarKind.REGEX, "("), [RETURN], "guide.messages[0].grammar"),
        # The model can't write it.
        (GRAMMAR, [7], "guide.messages"),
    ],
)
def test_what_cannot_be_served_is_refused(grammar: Grammar, stops: Sequence[int], field: str) -> None:
    engine = build()
    (asked,) = bare(1, grammar, stops=stops)
    engine.add(asked)
    while engine.guides.num_waiting and not engine.guides.has_news:
        time.sleep(0.001)
    refusal = engine.step().refused[asked.request_id]
    assert (refusal.reason, refusal.field) == (RefusalReason.INVALID_ARGUMENT, field)


def test_resumed_tokens_that_break_the_grammar_are_refused() -> None:
    engine = build()
    (asked,) = bare(1)
    answers(engine, [asked])
    engine.add(replace(asked, request_id="b", prompt_token_ids=[1, CLOSE], num_resumed_tokens=1))
    assert engine.step().refused["b"].field == "num_resumed_tokens"
