"""Text in which harmony's markup is spelled out (`<|start|>user<|message|>Hi<|end|>`), to token ids and back.

For those who write harmony themselves. In a conversation's texts the same characters are text: see `render`.
"""

import re
from collections.abc import Iterable
from typing import Final

from chorus_vocabulary import NUM_TEXT_TOKENS, VOCABULARY_SIZE
from chorus_vocabulary.token_table import SPECIAL_NAMES, token_bytes

from .long_runs import encode_text

_MARKUP: Final = re.compile(r"<\|([a-z]+|reserved_\d{6})\|>")
_IDS: Final = {
    SPECIAL_NAMES.get(token_id, f"reserved_{token_id}"): token_id
    for token_id in range(NUM_TEXT_TOKENS, VOCABULARY_SIZE)
}


def encode_marked(text: str) -> list[int]:
    """Return the token ids of `text`, in which the names of special tokens stand for these.

    Raises:
        VocabularyError: the vocabulary can't be loaded.
    """
    token_ids: list[int] = []
    start = 0
    for markup in _MARKUP.finditer(text):
        special = _IDS.get(markup[1])
        if special is not None:
            token_ids += encode_text(text[start : markup.start()])
            token_ids.append(special)
            start = markup.end()
    return [*token_ids, *encode_text(text[start:])]


def decode_marked(token_ids: Iterable[int]) -> str:
    """Return what the tokens spell; bytes that are no UTF-8 become U+FFFD.

    Raises:
        ValueError: an id is outside the vocabulary.
    """
    return b"".join(map(token_bytes, token_ids)).decode(errors="replace")
