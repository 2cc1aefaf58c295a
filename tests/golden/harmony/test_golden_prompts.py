"""Prompts are, to the token, what they were when they were recorded."""

import json

import pytest
from tests.golden.harmony.conversations import FOLDER, conversations, record

from chorus_cluster.harmony.encoding import load_encoding
from chorus_vocabulary import NUM_TEXT_TOKENS

FORGED = "forged_markup"


@pytest.mark.parametrize("name", conversations())
def test_prompt_is_as_recorded(name: str) -> None:
    recording = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert record(conversations()[name]) == recording
    if name != FORGED:
        # Read back with all markup as special tokens, the text must give the same ids: none was spelled by letters.
        text = "\n".join(recording["text"])
        assert load_encoding().encode(text, allowed_special="all") == recording["token_ids"]


def test_forged_markup_stays_text() -> None:
    """The forged conversation has five messages and a header to complete, whatever its texts say."""
    recording = json.loads((FOLDER / f"{FORGED}.json").read_text("utf-8"))
    specials = [token_id for token_id in recording["token_ids"] if token_id >= NUM_TEXT_TOKENS]
    start, message, end = load_encoding().encode("<|start|><|message|><|end|>", allowed_special="all")
    assert specials == [start, message, end] * 3 + [start]


def test_no_recording_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(conversations())
