"""Guides on every runner: an engine over each, and a random model, which knows harmony and JSON by its guide alone."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from tests.support.checkpoints import TINY, write_checkpoint
from tests.support.engine_driver import Answer, run
from tests.support.runner_driver import make_runner
from tests.support.triton_stand_ins import DEVICE, stand_in

from chorus_cluster.harmony import headers
from chorus_cluster.harmony.encoding import load_encoding
from chorus_vocabulary import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, STOP_TOKEN_IDS, VOCABULARY_SIZE
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.guide.spec import Grammar, GrammarKind, GuidedMessage, GuideSpec
from chorus_workers.model.checkpoint import load_model, load_model_as
from chorus_workers.runner.base import Runner
from chorus_workers.runner.triton.form import DeviceForm
from chorus_workers.runner.triton.runner import TritonRunner
from chorus_workers.sampling_params import SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2, "two", True]}},
    "required": ["n"],
    "additionalProperties": False,
}
GRAMMAR = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
REASONING = GuidedMessage(headers.analysis_header(), frozenset({END}), is_reasoning=True)
ANSWER = GuidedMessage(headers.final_headers(is_constrained=False)[0], frozenset({RETURN}), GRAMMAR)
CALLS = [GuidedMessage(header, frozenset({CALL}), GRAMMAR) for header in headers.call_headers("f")]
WORDS = load_encoding().encode(" to=functions.f analysis commentary final assistant json true false two")
CHARACTERS = [load_encoding().encode(character)[0] for character in ' {}":,12oktrueflaswn']
TOKEN_IDS = sorted(
    {START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL, *WORDS, *CHARACTERS}
    | {token_id for message in (REASONING, ANSWER, *CALLS) for token_id in (*message.header, *headers.opening())}
)


@pytest.fixture(params=["reference", "triton"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    stand_in(monkeypatch)
    shape = replace(TINY, vocab_size=VOCABULARY_SIZE, vocabulary_rows=(-1, *TOKEN_IDS))
    folder = write_checkpoint(tmp_path / "checkpoint", shape)
    reference = make_runner(load_model(folder))
    runner: Runner = reference
    if request.param == "triton":
        runner = TritonRunner(load_model_as(DeviceForm(DEVICE), folder), reference.info)
    return Engine(runner, max_queued_requests=100, clock=time.monotonic)


def ask(count: int, *messages: GuidedMessage, budget: int | None = None) -> list[GenerationRequest]:
    spec = GuideSpec(headers.opening(), messages, budget)
    return [
        GenerationRequest(
            request_id=f"{seed}",
            prompt_token_ids=[START, *headers.opening()[1:]],
            params=SamplingParams(
                temperature=0.0 if seed == 0 else 1.5,
                seed=seed,
                num_top_logprobs=2,
                stop_token_ids=frozenset(STOP_TOKEN_IDS),
            ),
            max_tokens=60,
            guide=spec,
        )
        for seed in range(count)
    ]


def raw(count: int) -> list[GenerationRequest]:
    """Whose answers are the grammar's text alone."""
    spec = GuideSpec((), (GuidedMessage((), frozenset(STOP_TOKEN_IDS), GRAMMAR),))
    return [replace(asked, guide=spec) for asked in ask(count, ANSWER)]


def answers(engine: Engine, asked: Sequence[GenerationRequest]) -> dict[str, Answer]:
    for request in asked:
        engine.guides.prepare(request)
    while engine.guides.num_waiting:
        for prepared in engine.guides.take_ready():
            assert prepared.is_ready
        time.sleep(0.001)
    return run(engine, asked)


def split(tokens: Sequence[int], message: GuidedMessage) -> list[int]:
    """What follows the message's header, which the tokens must begin with."""
    length = len(message.header)
    assert tuple(tokens[:length]) == tuple(message.header)
    return list(tokens[length:])


def check_json(body: Sequence[int], end: int) -> None:
    assert body[-1] == end
    jsonschema.validate(json.loads(b"".join(map(token_bytes, body[:-1]))), SCHEMA)


def check_call(tokens: Sequence[int]) -> None:
    (message,) = (message for message in CALLS if tuple(tokens[: len(message.header)]) == message.header)
    check_json(split(tokens, message), CALL)


def check_reasoned(tokens: Sequence[int], budget: int) -> None:
    rest, num_reasoning = list(tokens), 0
    while tuple(rest[: len(REASONING.header)]) == REASONING.header:
        rest = split(rest, REASONING)
        length = next(i for i, token in enumerate(rest) if token in (START, CHANNEL, END))
        num_reasoning += length
        rest = rest[length + (rest[length] == END) :]
        rest = rest[len(headers.opening()) :] if rest[0] == START else rest
    assert num_reasoning <= budget
    check_json(split(rest, ANSWER), RETURN)


def test_answers_calls_and_reasoning_side_by_side(engine: Engine) -> None:
    kinds = {
        "answer": ask(2, ANSWER),
        "call": ask(2, *CALLS),
        "reasoned": ask(3, REASONING, ANSWER, budget=2),
        "raw": raw(3),
        "free": [replace(asked, guide=None, max_tokens=9) for asked in ask(1, ANSWER)],
    }
    asked = [replace(one, request_id=f"{kind} {i}") for kind, some in kinds.items() for i, one in enumerate(some)]
    for request_id, (tokens, reason) in answers(engine, asked).items():
        kind = request_id.split()[0]
        if kind == "free":
            continue
        assert reason == FinishReason.STOP
        if kind == "answer":
            check_json(split(tokens, ANSWER), RETURN)
        elif kind == "call":
            check_call(tokens)
        elif kind == "raw":
            check_json(tokens, tokens[-1])
            assert tokens[-1] in STOP_TOKEN_IDS
        else:
            check_reasoned(tokens, budget=2)
    assert engine.stats.guide_interventions.keys() >= {"header", "grammar", "reasoning_budget"}
