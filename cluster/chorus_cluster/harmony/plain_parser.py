"""Tokens as one text, whatever they mean in harmony: the answer to a raw prompt."""

import codecs
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from chorus_vocabulary import NUM_TEXT_TOKENS, STOP_TOKEN_IDS, VOCABULARY_SIZE
from chorus_vocabulary.token_table import token_bytes

from .deltas import AnswerDelta, Delta

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class PlainParser:
    """Stands where a `StreamParser` does.

    A UTF-8 sequence that is split over tokens is held until it is whole; what can't become whole is U+FFFD.

    Args:
        with_markup: whether special tokens are spelled by their names; those that end a generation never are.
    """

    repairs = _NONE
    num_reasoning_tokens = 0
    num_tool_calls = 0

    def __init__(self, *, with_markup: bool = False) -> None:
        self._end = VOCABULARY_SIZE if with_markup else NUM_TEXT_TOKENS
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_fed = 0
        self._indices: list[int] = []

    def feed(self, token_ids: Iterable[int]) -> list[Delta]:
        """Take the next tokens of the stream and return what they spell."""
        pieces = []
        for index, token_id in enumerate(token_ids, self._num_fed):
            self._num_fed = index + 1
            if 0 <= token_id < self._end and token_id not in STOP_TOKEN_IDS:
                pieces.append(token_bytes(token_id))
                self._indices.append(index)
        return self._deltas(self._decoder.decode(b"".join(pieces)))

    def finish(self) -> list[Delta]:
        """Return what was still held: nothing more follows."""
        return self._deltas(self._decoder.decode(b"", final=True))

    def _deltas(self, text: str) -> list[Delta]:
        if not text:
            return []
        indices, self._indices = tuple(self._indices), []
        return [AnswerDelta(text, indices)]
