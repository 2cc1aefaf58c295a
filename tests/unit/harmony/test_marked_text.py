"""Raw prompts: markup that is spelled out, there and back."""

import pytest

import chorus_vocabulary as v
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.marked_text import decode_marked, encode_marked
from chorus_vocabulary.token_table import SPECIAL_NAMES

PROMPT = "<|start|>user<|message|>Wie geht's, 世界? 🧑🏽‍🚀<|end|><|start|>assistant"


@pytest.mark.parametrize(
    "text",
    ["", "Hi", PROMPT, "<|start|><|start|>", "<|nobody|> <|end|", "<|end|>" * 3, "a\n\n<|call|>\t", "<|<|end|>|>"],
)
def test_as_openai_harmony_reads_it(text: str) -> None:
    assert encode_marked(text) == load_encoding().encode(text, allowed_special="all")


def test_every_special_token_has_a_name_that_means_it() -> None:
    ids = range(v.NUM_TEXT_TOKENS, v.VOCABULARY_SIZE)
    assert encode_marked(decode_marked(ids)) == [*ids]
    assert {v.START, v.MESSAGE, v.RETURN} <= SPECIAL_NAMES.keys()


@pytest.mark.parametrize("text", [PROMPT, "!" * 1000 + "<|end|>" + "?" * 1000, "漢" * 5000, "\x00<|end|>"])
def test_there_and_back(text: str) -> None:
    assert decode_marked(encode_marked(text)) == text
    assert encode_marked(text).count(v.END) == text.count("<|end|>")


def test_what_is_no_text_and_no_token() -> None:
    assert decode_marked([encode_marked("🧑🏽")[0]]) == "�"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        decode_marked([v.VOCABULARY_SIZE])
