"""Headers that a client spells out have the tokens that the model was trained to write."""

import random
import string

import pytest

from chorus_cluster.harmony import headers
from chorus_cluster.harmony.encoding import load_encoding
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.guide.tokenizer import encode_marked


def names(count: int) -> list[str]:
    """Of functions, as they may be called."""
    source = random.Random(3)
    letters = string.ascii_letters + string.digits + "_-"
    words = ["get", "Weather", "search", "2", "XML", "_", "-", "user", "ID", "list_all"]
    made = ["".join(source.choices(letters, k=source.randrange(1, 65))) for _ in range(count // 2)]
    return made + ["".join(source.choices(words, k=source.randrange(1, 6))) for _ in range(count // 2)]


def test_headers_are_those_of_harmony_token_by_token() -> None:
    every = [headers.analysis_header(), headers.preamble_header(), headers.opening()]
    every += headers.final_headers(is_constrained=True)
    for name in names(200):
        every += headers.call_headers(name)
    for header in every:
        assert encode_marked(b"".join(map(token_bytes, header)).decode()) == list(header)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "<|start|>",
            "<|message|><|message|>",
            "a<|start|>b<|end|>c",
            "<|start|>assistant<|channel|>commentary to=",
        ),
        *(
            "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
            " to=browser.search<|channel|>commentary",
        ),
        *("no <|markup", "漢字<|call|>'s we'LL  x\n\n\t123456 😀", "<|END|>", "<|end |>"),
    ],
)
def test_whatever_else_is_spelled_is_harmony_s_too(text: str) -> None:
    assert encode_marked(text) == load_encoding().encode(text, allowed_special="all")


def test_what_only_looks_like_markup_is_text() -> None:
    assert encode_marked("<|nosuch|>") == load_encoding().encode("<|nosuch|>", disallowed_special=())
