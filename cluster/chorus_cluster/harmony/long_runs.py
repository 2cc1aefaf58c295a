"""Keep the tokenizer's time linear in the text.

openai-harmony cuts a text into pieces (runs of letters, of punctuation, of white space) and merges bytes inside a piece
in quadratic time: 100,000 ideographs without punctuation take 45 s, and a million equal letters exhaust its regular
expression's stack. Runs beyond `MAX_RUN` characters are therefore encoded in parts. No text of a natural language is
affected, nor is code; where a text is, its tokens differ from openai-harmony's at the cuts and spell the same text.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Final

from .encoding import load_encoding

MAX_RUN: Final = 256
"""Longest run of characters (of one class) that is encoded as a whole; a character then takes 2 µs at most."""

# From here on there are no letters but those to come, tags, variation selectors and private use: taken as both classes.
_FIRST_SPARSE: Final = 0x33000

# Cheap and generous: whatever holds a long run has one of these, but so has ordinary Chinese text. A run is tried at
# its first character alone: tried at each, runs that are just too short would take quadratic time themselves.
_SUSPICIOUS: Final = re.compile(rf"(?<![^\s\d])[^\s\d]{{{MAX_RUN},}}|(?<!\s)\s{{{MAX_RUN},}}")


def has_long_run(text: str) -> bool:
    """Tell whether `text` holds more than `MAX_RUN` characters that the tokenizer would take as one piece."""
    return len(text) > MAX_RUN and _SUSPICIOUS.search(text) is not None and _long_run().search(text) is not None


def split_long_runs(text: str) -> Iterator[str]:
    """Yield `text` in parts such that no part holds a long run; the whole text at once where there is none."""
    if not has_long_run(text):
        yield text
        return
    start = 0
    for run in _long_run().finditer(text):
        for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]


def encode_text(text: str) -> list[int]:
    """Return the token ids of `text` as text, whatever it spells, in time that is linear in its length.

    Raises:
        VocabularyError: the vocabulary can't be loaded.
    """
    parts = (load_encoding().encode(part, disallowed_special=()) for part in split_long_runs(text))
    return [token_id for part in parts for token_id in part]


def load_patterns() -> None:
    """Compile the patterns, which takes 70 ms once."""
    _long_run()


@functools.cache
def _long_run() -> re.Pattern[str]:
    """Match runs of letters and marks, of neither letters nor digits nor white space, and of white space.

    Marks belong to both of the first two; so do characters that this Python does not know yet, since the tokenizer may.
    """
    letters: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    for code in range(_FIRST_SPARSE):
        category = unicodedata.category(chr(code))
        if category[0] in "LM" or category == "Cn":
            _extend(letters, code)
        if category[0] not in "LNZ" and not chr(code).isspace():
            _extend(others, code)
    for ranges in (letters, others):
        ranges.append((_FIRST_SPARSE, sys.maxunicode))
    classes = (_character_class(letters), _character_class(others), r"\s")
    return re.compile("|".join(f"{c}{{{MAX_RUN + 1},}}" for c in classes))


def _extend(ranges: list[tuple[int, int]], code: int) -> None:
    if ranges and ranges[-1][1] == code - 1:
        ranges[-1] = (ranges[-1][0], code)
    else:
        ranges.append((code, code))


def _character_class(ranges: list[tuple[int, int]]) -> str:
    return "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]"
