"""Custom tools with a grammar, from the request's body to the engine's tokens and back to calls: each follows its
grammar, whatever the model would rather write."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.grammars import EDITS, is_edits
from tests.unit.engine.support import VOCAB_SIZE, ask, build_engine, run_all
from tests.unit.engine.test_guided_requests import wait_for_grammars

from chorus_cluster.gateway.guide import build_guide
from chorus_cluster.gateway.responses.parse import parse_response_body
from chorus_cluster.harmony import headers
from chorus_cluster.harmony.deltas import ToolCallArguments, ToolCallStarted
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.parser import StreamParser
from chorus_vocabulary import CALL, END, RETURN, STOP_TOKEN_IDS, VOCABULARY_SIZE
from chorus_workers.convert_guide import guide_from_pb
from chorus_workers.engine.request import FinishReason

# Each alone, so that whatever was begun can be gone on with.
CHARACTERS = "= EditsChangeCreateRemoveRenameDoneEnd\n+-:abc9"
NEEDED = sorted(
    {END, RETURN, CALL, *headers.opening(), *headers.analysis_header(), *headers.preamble_header()}
    | {token for header in headers.final_headers(is_constrained=False) for token in header}
    | {
        token
        for is_text in (True, False)
        for header in headers.call_headers("edit", is_text=is_text)
        for token in header
    }
    | {load_encoding().encode(character)[0] for character in CHARACTERS}
)
# And letters, as many as the model of these tests has room for.
TOKEN_IDS = [*NEEDED, *(token for token in range(64, 200) if token not in NEEDED)][:VOCAB_SIZE]


def is_digits(text: str) -> bool:
    return re.fullmatch("9(a|bc)*9", text) is not None


@pytest.mark.parametrize(
    ("syntax", "definition", "follows"), [("lark", EDITS, is_edits), ("regex", "9(a|bc)*9", is_digits)]
)
@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_every_call_follows_the_grammar(
    syntax: str, definition: str, follows: Callable[[str], bool], tool_choice: str
) -> None:
    form = {"type": "grammar", "syntax": syntax, "definition": definition}
    body: dict[str, Any] = {"model": "m", "input": "Hi", "tools": [{"type": "custom", "name": "edit", "format": form}]}
    guide = build_guide(parse_response_body(body | {"tool_choice": tool_choice}).chat, header_guard=False).pb
    assert guide is not None
    engine, *_ = build_engine(
        token_ids=TOKEN_IDS, overlaps=True, max_queued_requests=100, max_model_len=512, num_blocks=1024, num_slots=16
    )
    spec = guide_from_pb(guide, replace(engine.info, vocab_size=VOCABULARY_SIZE), frozenset(STOP_TOKEN_IDS))
    for seed in range(60):
        asked = ask(f"{seed}", max_tokens=400, seed=seed, guide=spec)
        engine.add(replace(asked, params=replace(asked.params, stop_token_ids=frozenset(STOP_TOKEN_IDS))))
    wait_for_grammars(engine)
    gathered = run_all(engine)
    num_calls = 0
    for request_id, reason in gathered.finished.items():
        parser = StreamParser(["edit"])
        deltas = [*parser.feed(gathered.tokens[request_id]), *parser.finish()]
        called = any(isinstance(delta, ToolCallStarted) for delta in deltas)
        if called and reason == FinishReason.STOP:
            text = "".join(delta.text for delta in deltas if isinstance(delta, ToolCallArguments))
            assert follows(text), text
            num_calls += 1
    assert len(gathered.finished) == 60 and num_calls > 10, num_calls
