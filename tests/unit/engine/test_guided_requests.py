"""Requests with guides, through scheduler and engine: whatever else is in the steps, answers keep to their messages."""

import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.unit.engine.support import Gathered, ask, build_engine, check_partition, run_all

from chorus_vocabulary import CALL, CHANNEL, END, ENDOFTEXT, MESSAGE, RETURN, START, STOP_TOKEN_IDS
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest, RefusalReason
from chorus_workers.guide.spec import Grammar, GrammarKind, GuidedMessage, GuideSpec

ASSISTANT, ANALYSIS, FINAL, COMMENTARY = 1, 2, 3, 4
# Markers are half of what is drawn: the model of these tests is as confused as can be.
TOKEN_IDS = [
    *(START, ASSISTANT, CHANNEL, ANALYSIS, FINAL, COMMENTARY, MESSAGE, END, RETURN, CALL, ENDOFTEXT),
    *range(500, 539),
]
REASONING = GuidedMessage((CHANNEL, ANALYSIS, MESSAGE), frozenset({END}), is_reasoning=True)
ANSWER = GuidedMessage((CHANNEL, FINAL, MESSAGE), frozenset({END, RETURN}))
TOOL_CALL = GuidedMessage((CHANNEL, COMMENTARY, MESSAGE), frozenset({END, CALL}))
SPEC = GuideSpec((START, ASSISTANT), (REASONING, ANSWER, TOOL_CALL))


def guided(count: int, *, spec: GuideSpec = SPEC, max_tokens: int = 40) -> list[GenerationRequest]:
    asked = [ask(f"{seed}", max_tokens=max_tokens, seed=seed, guide=spec) for seed in range(count)]
    return [replace(a, params=replace(a.params, stop_token_ids=frozenset(STOP_TOKEN_IDS))) for a in asked]


def build(**settings: object) -> Engine:
    return build_engine(token_ids=TOKEN_IDS, **settings)[0]  # type: ignore[arg-type]


def answers(engine: Engine, asked: Sequence[GenerationRequest]) -> Gathered:
    for request in asked:
        engine.add(request)
    return run_all(engine)


def check_messages(tokens: Sequence[int], spec: GuideSpec, *, is_whole: bool) -> Counter[str]:
    """Reads an answer by the rules of a guide, as a reader would that has never seen one. Returns what it met."""
    met: Counter[str] = Counter()
    messages = {tuple(message.header): message for message in spec.messages}
    rest, num_reasoning = list(tokens), 0
    while rest:
        header, rest = rest[:3], rest[3:]
        if len(header) < 3:
            assert not is_whole
            break
        message = messages[tuple(header)]
        length = next((i for i, token in enumerate(rest) if token in (START, CHANNEL, END, *STOP_TOKEN_IDS)), len(rest))
        body, rest = rest[:length], rest[length:]
        num_reasoning += len(body) * message.is_reasoning
        met["bodies"] += 1
        if not rest:
            assert not is_whole
            break
        last = rest.pop(0)
        if last in STOP_TOKEN_IDS:
            assert last in message.end_token_ids and not rest and is_whole
            met["stops in bodies"] += 1
            break
        if last == END and rest and rest[0] in STOP_TOKEN_IDS:
            assert rest[0] in message.end_token_ids and len(rest) == 1 and is_whole
            met["stops after bodies"] += 1
            break
        if last == CHANNEL:
            rest = [CHANNEL, *rest]
            met["headers without an end"] += 1
        else:
            rest = [START, *rest] if last == START else rest
            assert rest[:2] == [START, ASSISTANT][: len(rest)]
            rest = rest[2:]
    if spec.max_reasoning_tokens is not None:
        assert num_reasoning <= spec.max_reasoning_tokens
    return met


def test_every_answer_keeps_to_its_messages() -> None:
    asked = guided(300)
    gathered = answers(build(overlaps=True, max_queued_requests=1000), asked)
    met: Counter[str] = Counter()
    for request_id, reason in gathered.finished.items():
        assert reason in (FinishReason.STOP, FinishReason.LENGTH)
        met += check_messages(gathered.tokens[request_id], SPEC, is_whole=reason == FinishReason.STOP)
    assert len(gathered.finished) == 300
    assert met.keys() == {"bodies", "stops in bodies", "stops after bodies", "headers without an end"}


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_reasoning_ends_with_its_budget(budget: int) -> None:
    spec = replace(SPEC, max_reasoning_tokens=budget)
    engine = build(overlaps=True, max_queued_requests=1000)
    gathered = answers(engine, guided(100, spec=spec))
    for request_id, reason in gathered.finished.items():
        check_messages(gathered.tokens[request_id], spec, is_whole=reason == FinishReason.STOP)
    reasoning = [ids for ids in gathered.tokens.values() if ids[:3] == [CHANNEL, ANALYSIS, MESSAGE]]
    assert bool(reasoning) == (budget > 0)
    assert bool(engine.stats.guide_interventions["reasoning_budget"]) == (budget > 0)


def test_no_reasoning_follows_another_where_it_may_come_but_once() -> None:
    engine = build(overlaps=True, max_queued_requests=1000)
    gathered = answers(engine, guided(200, spec=replace(SPEC, reasons_once=True)))
    counts = Counter(len(bodies(tokens, REASONING.header)) for tokens in gathered.tokens.values())
    assert counts.keys() == {0, 1}
    for request_id, reason in gathered.finished.items():
        check_messages(gathered.tokens[request_id], SPEC, is_whole=reason == FinishReason.STOP)


def test_a_guide_says_what_comes_whoever_else_is_in_the_steps() -> None:
    asked = guided(60)
    alone = {a.request_id: answers(build(), [a]) for a in asked}
    for settings in ({}, {"overlaps": True}, {"overlaps": True, "num_blocks": 16, "num_slots": 4}):
        engine = build(max_queued_requests=1000, **settings)
        gathered = Gathered()
        for request in asked:
            engine.add(request)
        while engine.has_requests:
            gathered.take(engine.step())
            check_partition(engine)
        assert gathered.finished == {a.request_id: alone[a.request_id].finished[a.request_id] for a in asked}
        assert gathered.tokens == {a.request_id: alone[a.request_id].tokens[a.request_id] for a in asked}
        assert engine.stats.guide_interventions["early_stop"] > 10
        assert engine.stats.guide_interventions["header"] > 10
        assert bool(engine.stats.num_preemptions) == ("num_blocks" in settings)
        engine.check_integrity()


def test_those_without_a_guide_are_not_touched_by_those_that_have_one() -> None:
    free = [replace(a, guide=None) for a in guided(20)]
    alone = {a.request_id: answers(build(), [a]).tokens[a.request_id] for a in free}
    beside = [replace(a, request_id=f"guided {a.request_id}") for a in guided(20)]
    mixed = [request for pair in zip(free, beside, strict=True) for request in pair]
    gathered = answers(build(overlaps=True), mixed)
    assert {a.request_id: gathered.tokens[a.request_id] for a in free} == alone


def test_an_answer_goes_on_elsewhere_as_it_would_have() -> None:
    spec = replace(SPEC, max_reasoning_tokens=6)
    source = random.Random(1)
    for asked in guided(40, spec=spec):
        whole = answers(build(overlaps=True), [asked])
        tokens = whole.tokens[asked.request_id]
        if len(tokens) < 2:
            continue
        cut = source.randrange(1, len(tokens))
        prompt = [*asked.prompt_token_ids, *tokens[:cut]]
        resumed = answers(build(overlaps=True), [replace(asked, prompt_token_ids=prompt, num_resumed_tokens=cut)])
        assert resumed.tokens[asked.request_id] == tokens[cut:]
        assert resumed.finished == whole.finished


def test_resumed_tokens_that_break_the_guide_are_refused() -> None:
    engine = build()
    (asked,) = guided(1)
    engine.add(replace(asked, prompt_token_ids=[1, 2, 3, 500], num_resumed_tokens=1))
    refusal = engine.step().refused[asked.request_id]
    assert (refusal.reason, refusal.field) == (RefusalReason.INVALID_ARGUMENT, "num_resumed_tokens")


def with_grammar(kind: GrammarKind, source: str) -> GuideSpec:
    return replace(SPEC, messages=(REASONING, replace(ANSWER, grammar=Grammar(kind, source))))


def wait_for_grammars(engine: Engine) -> None:
    end = time.monotonic() + 30
    while engine.guides.num_waiting and not engine.guides.has_news:
        assert time.monotonic() < end
        time.sleep(0.001)


def bodies(tokens: Sequence[int], header: Sequence[int]) -> list[tuple[list[int], int | None]]:
    """The bodies behind a header, each with the token that ended it; None where the answer was cut."""
    found: list[tuple[list[int], int | None]] = []
    for start in range(len(header), len(tokens) + 1):
        if tuple(tokens[start - len(header) : start]) == tuple(header):
            rest = tokens[start:]
            length = next((i for i, token in enumerate(rest) if token in (START, CHANNEL, END, *STOP_TOKEN_IDS)), None)
            found.append((list(rest[:length]), None if length is None else rest[length]))
    return found


def test_a_request_is_admitted_when_its_grammar_has_been_compiled() -> None:
    engine = build(overlaps=True)
    asked, *others = guided(100, spec=with_grammar(GrammarKind.REGEX, "(ment|ect|ity)+"))
    heard: list[bool] = []
    engine.guides.on_news = lambda: heard.append(True)
    engine.add(asked)
    assert not engine.has_requests
    assert engine.load().num_waiting == 1
    wait_for_grammars(engine)
    assert engine.has_requests and heard
    gathered = run_all(engine)
    # Now they are known, and nobody waits.
    for other in others:
        engine.add(other)
        assert engine.has_requests
    run_all(engine, gathered)
    num_whole = 0
    for request_id, tokens in gathered.tokens.items():
        assert gathered.finished[request_id] in (FinishReason.STOP, FinishReason.LENGTH)
        for body, end in bodies(tokens, (CHANNEL, FINAL, MESSAGE)):
            text = b"".join(map(token_bytes, body)).decode()
            assert re.fullmatch("(ment|ect|ity)*", text)
            if end is not None:
                assert text and end in ANSWER.end_token_ids
                num_whole += 1
    assert num_whole > 10
    assert engine.stats.guide_interventions["grammar"] > 10


def test_a_request_that_leaves_while_its_grammar_is_compiled_is_forgotten() -> None:
    engine = build()
    (asked,) = guided(1, spec=with_grammar(GrammarKind.REGEX, "[a-z]+"))
    engine.add(asked)
    engine.abort(asked.request_id)
    assert engine.load().num_waiting == 0
    assert engine.step().finished == {asked.request_id: (FinishReason.ABORT, "")}
    while not engine.guides.has_news:
        time.sleep(0.001)
    assert not engine.step()
    assert not engine.has_requests


@pytest.mark.parametrize("source", ["(", "(?=x)"])
def test_a_grammar_that_cannot_be_used_is_refused_by_itself(source: str) -> None:
    engine = build()
    bad, good = guided(2)
    engine.add(replace(bad, guide=with_grammar(GrammarKind.REGEX, source)))
    engine.add(good)
    output = run_all(engine)
    # On a busy machine the answer may end later than the grammar's compilation.
    wait_for_grammars(engine)
    output.take(engine.step())
    refusal = output.refused[bad.request_id]
    assert (refusal.reason, refusal.field) == (RefusalReason.INVALID_ARGUMENT, "guide.messages[1].grammar")
    assert "regex" in refusal.message
    assert good.request_id in output.finished
