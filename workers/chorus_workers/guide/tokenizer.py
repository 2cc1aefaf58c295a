"""llguidance's tokenizer: splits text into tokens as the model's does."""

import functools
import re
from collections.abc import Sequence
from threading import Lock

import llguidance

from chorus_vocabulary import NUM_TEXT_TOKENS
from chorus_vocabulary.token_table import SPECIAL_NAMES, SPLIT_PATTERN, token_bytes

_END = "<|end of text|>"
_MARKUP = re.compile(r"<\|([a-z]+)\|>")
_SPECIAL_IDS = {name: token_id for token_id, name in SPECIAL_NAMES.items()}
_loading = Lock()


def build_tokenizer(token_ids: Sequence[int]) -> tuple[llguidance.LLTokenizer, int]:
    """A tokenizer that numbers these tokens in their order, without those of markup; and its number for a text's end.

    Behind the tokens it numbers the bytes that none of them spells alone, which merges begin with.
    """
    numbers = {token_bytes(token_id): number for number, token_id in enumerate(token_ids) if token_id < NUM_TEXT_TOKENS}
    end = len(token_ids)
    for byte in map(int.to_bytes, range(256)):
        if byte not in numbers:
            numbers[byte] = end
            end += 1
    tokenizer: llguidance.LLTokenizer = llguidance.LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]
        encoder=numbers,
        special_tokens={_END: end},
        pattern=SPLIT_PATTERN,
        eos_token=end,
        n_vocab=end + 1,
        slices=llguidance.LLTokenizer.json_slices(),
    )
    return tokenizer, end


def encode_marked(text: str) -> list[int]:
    """The token ids of text in which harmony's markup is spelled out, as in headers. The first call takes a second and
    100 MB."""
    token_ids: list[int] = []
    start = 0
    for markup in _MARKUP.finditer(text):
        special = _SPECIAL_IDS.get(markup[1])
        if special is not None:
            token_ids += _encode(text[start : markup.start()])
            token_ids.append(special)
            start = markup.end()
    return token_ids + _encode(text[start:])


def _encode(text: str) -> list[int]:
    with _loading:
        return _text_tokenizer().tokenize_str(text)


@functools.cache
def _text_tokenizer() -> llguidance.LLTokenizer:
    return build_tokenizer(range(NUM_TEXT_TOKENS))[0]
