"""Turn the tokens of message bodies into text deltas."""

import codecs
from typing import Final

from .deltas import AnswerDelta, Delta, ReasoningDelta, ToolCallArguments
from .header import Pieces

Sink = int
"""Where a body's text goes: PREAMBLE, REASONING, ANSWER, or the arguments of the tool call with this index."""
PREAMBLE: Final = -3
REASONING: Final = -2
ANSWER: Final = -1

_BREAK: Final = "\n\n"
_ROLE: Final = b"assistant"


class TextSink:
    """Collects tokens and hands out their text.

    A UTF-8 sequence that is split over tokens is held until it is whole; what can't become whole is U+FFFD, as in any
    decoder of streams. Texts of two messages that go to the same place are set apart by an empty line.

    Attributes:
        pending: tokens that are not decoded yet; the parser appends to it directly.
        deltas: what was decoded; the parser takes it away.
        num_reasoning_tokens: tokens decoded as reasoning so far.
    """

    def __init__(self) -> None:
        self.pending = Pieces()
        self.deltas: list[Delta] = []
        self.num_reasoning_tokens = 0
        self._sink: Sink = ANSWER
        self._incomplete = b""
        self._indices: list[int] = []
        self._starts_message = False
        self._seen: set[Sink] = set()

    def open(self, sink: Sink, *, starts_message: bool) -> None:
        """Direct the text to come; `starts_message` is false where it continues a message."""
        self._sink = sink
        self._starts_message = starts_message

    def close(self) -> None:
        """Decode all that is pending, as nothing more follows."""
        self._decode(final=True)

    def flush(self) -> None:
        """Decode what can be decoded.

        A last token "assistant" waits: before a `<|channel|>` it is no text, but the role of the next message, whose
        `<|start|>` the model left out.
        """
        held = self.take_role()
        self._decode(final=False)
        if held is not None:
            self.pending.append(_ROLE, held)

    def take_role(self) -> int | None:
        """Remove a last pending token "assistant" and return its position, None if there is none."""
        if not self.pending.pieces or self.pending.pieces[-1] != _ROLE:
            return None
        self.pending.pieces.pop()
        return self.pending.indices.pop()

    def _decode(self, *, final: bool) -> None:
        pending = self.pending
        if not pending.pieces and not (final and self._incomplete):
            return
        data = self._incomplete + b"".join(pending.pieces)
        text, num_decoded = codecs.utf_8_decode(data, "replace", final)
        self._incomplete = data[num_decoded:]
        if self._sink == REASONING:
            self.num_reasoning_tokens += len(pending.pieces)
        self._indices += pending.indices
        pending.pieces.clear()
        pending.indices.clear()
        if text:
            self._emit(text)
        if text or final:
            self._indices.clear()

    def _emit(self, text: str) -> None:
        sink = self._sink
        if sink >= 0:
            self.deltas.append(ToolCallArguments(sink, text))
            return
        is_preamble = sink == PREAMBLE
        # Who doesn't tell preambles from answers reads both as one text.
        place = ANSWER if is_preamble else sink
        needs_break = self._starts_message and place in self._seen
        self._starts_message = False
        self._seen.add(place)
        if sink == REASONING:
            self.deltas.append(ReasoningDelta(_BREAK + text if needs_break else text))
            return
        if needs_break:
            self.deltas.append(AnswerDelta(_BREAK, (), is_preamble))
        self.deltas.append(AnswerDelta(text, tuple(self._indices), is_preamble))
