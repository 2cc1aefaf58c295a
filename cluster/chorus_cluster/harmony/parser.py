"""Parse the model's harmony, token by token, into typed deltas.

openai-harmony's StreamableParser raises on malformed streams, and what it held by then is lost. This one never raises:
it delivers all text that bodies hold, repairs what is malformed, and counts each repair by its class. On well-formed
streams both agree. What each repair delivers as what: docs/harmony.md.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from chorus_vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    MESSAGE,
    NUM_TEXT_TOKENS,
    RETURN,
    START,
    VOCABULARY_SIZE,
)
from chorus_vocabulary.token_table import load_token_table

from .addressee import addressee, stray_sink
from .deltas import Delta, ToolCallStarted
from .header import Header, Origin, Segment, read_header
from .repairs import Repair
from .text_sink import ANSWER, Sink, TextSink

_ENDS: Final = (END, RETURN, CALL, ENDOFTEXT)
# A part of a header holds at most four words ("commentary to=functions.f json"). Text that goes on is a body whose
# `<|message|>` was lost; the second bound is for text without spaces.
_MAX_HEADER_WORDS: Final = 6
_MAX_HEADER_TOKENS: Final = 64


class StreamParser:
    """Parser of one completion. The prompt ended with `<|start|>assistant`, so the stream begins inside a header.

    What is delivered depends on the tokens alone, not on how they were fed; only how it is cut into deltas does.

    Args:
        tool_names: the functions that the conversation declares. They are not needed to read well-formed calls, but
            help to tell a name from what sticks to it in a malformed one.
    """

    def __init__(self, tool_names: Iterable[str] = ()) -> None:
        self._tools = tuple(f"functions.{name}" for name in tool_names)
        table = load_token_table()
        self._blob, self._offsets = table.blob, table.offsets
        self._num_fed = 0
        self._num_tool_calls = 0
        self._repairs: Counter[str] = Counter()
        self._text = TextSink()
        # Inside a body, `_sink` says where its text goes; inside a header, `_segments` holds its parts; between
        # messages there is neither.
        self._sink: Sink | None = None
        self._segments: list[Segment] = []
        self._origin = Origin.FIRST
        self._interrupted: Sink | None = None
        self._next_check = 0
        self._open_header(Origin.FIRST)

    @property
    def repairs(self) -> Mapping[str, int]:
        """How often each class of `Repair` was needed so far; classes that were not are absent."""
        return MappingProxyType(self._repairs)

    @property
    def num_reasoning_tokens(self) -> int:
        """Text tokens delivered as reasoning so far."""
        return self._text.num_reasoning_tokens

    @property
    def num_tool_calls(self) -> int:
        """Tool calls started so far."""
        return self._num_tool_calls

    def feed(self, token_ids: Iterable[int]) -> list[Delta]:
        """Take the next tokens of the stream and return what they bring to light."""
        blob, offsets = self._blob, self._offsets
        pieces, indices = self._text.pending.pieces, self._text.pending.indices
        position = self._num_fed
        for token_id in token_ids:
            if self._sink is not None and 0 <= token_id < NUM_TEXT_TOKENS:
                pieces.append(blob[offsets[token_id] : offsets[token_id + 1]])
                indices.append(position)
            else:
                self._num_fed = position
                self._take(token_id)
            position += 1
        self._num_fed = position
        self._text.flush()
        return self._take_deltas()

    def finish(self) -> list[Delta]:
        """Return what was still held: nothing more follows."""
        if self._sink is not None:
            self._close_body()
        elif self._segments:
            self._cut_header()
        return self._take_deltas()

    def _take_deltas(self) -> list[Delta]:
        deltas, self._text.deltas = self._text.deltas, []
        return deltas

    def _take(self, token_id: int) -> None:
        """Take any token but a body's text."""
        if 0 <= token_id < NUM_TEXT_TOKENS:
            self._take_header_text(self._blob[self._offsets[token_id] : self._offsets[token_id + 1]])
        elif token_id == START:
            self._take_start()
        elif token_id == CHANNEL:
            self._take_channel()
        elif token_id == MESSAGE:
            self._take_message()
        elif token_id in _ENDS:
            self._take_end(token_id)
        elif token_id == CONSTRAIN and self._segments:
            self._open_part(CONSTRAIN)
        else:
            self._count(Repair.STRAY_SPECIAL if 0 <= token_id < VOCABULARY_SIZE else Repair.INVALID_TOKEN)

    def _take_header_text(self, piece: bytes) -> None:
        if not self._segments:
            self._count(Repair.MISSING_START)
            self._open_header(Origin.TEXT)
        segment = self._segments[-1]
        segment.append(piece, self._num_fed)
        num_tokens = len(segment.pieces)
        if num_tokens >= max(self._next_check, _MAX_HEADER_WORDS):
            is_long = num_tokens > _MAX_HEADER_TOKENS or len(segment.text.split()) > _MAX_HEADER_WORDS
            if is_long and not self._begin_body_within_header():
                self._next_check = 2 * num_tokens

    def _read_header(self, *, closed: bool, cut: bool = False) -> Header:
        return read_header(self._segments, self._origin, self._tools, closed=closed, cut=cut)

    def _begin_body_within_header(self) -> bool:
        """Treat the header's rest as the beginning of a body, if there is any."""
        header = self._read_header(closed=False)
        if not header.body.pieces:
            return False
        self._leave_header(header, closed=False)
        return True

    def _take_start(self) -> None:
        if self._sink is not None:
            self._interrupt_body(Origin.START)
            return
        if self._segments:
            header = self._read_header(closed=False)
            if header.body.pieces or header.strays or header.channel or header.recipients:
                self._leave_header(header, closed=False)
                self._close_body()
            else:
                self._count(Repair.DOUBLED_START)
                self._segments = [Segment()]
                self._origin = Origin.START
                return
        self._open_header(Origin.START)

    def _take_channel(self) -> None:
        if self._sink is not None:
            role = self._text.take_role()
            self._interrupt_body(Origin.CHANNEL)
            if role is not None:
                self._segments[-1].append(b"assistant", role)
        elif not self._segments:
            self._count(Repair.MISSING_START)
            self._open_header(Origin.CHANNEL)
        elif self._segments[-1].marker == CHANNEL and not self._segments[-1].pieces:
            self._count(Repair.DOUBLED_CHANNEL)
            return
        self._open_part(CHANNEL)

    def _take_message(self) -> None:
        if self._sink is not None:
            self._count(Repair.STRAY_SPECIAL)
            return
        if not self._segments:
            self._count(Repair.MISSING_START)
            self._open_header(Origin.TEXT)
        self._leave_header(self._read_header(closed=True), closed=True)

    def _take_end(self, token_id: int) -> None:
        if self._sink is not None:
            if token_id == ENDOFTEXT or (token_id == CALL) != (self._sink >= 0):
                self._count(Repair.WRONG_END)
            self._close_body()
        elif self._segments:
            header = self._read_header(closed=False)
            is_empty = header.says_nothing and not header.body.pieces and not header.strays
            if is_empty and self._interrupted is None:
                self._count(Repair.REDUNDANT_END)
                self._segments = []
                return
            self._leave_header(header, closed=False)
            self._close_body()
        else:
            self._count(Repair.REDUNDANT_END)

    def _cut_header(self) -> None:
        header = self._read_header(closed=False, cut=True)
        if header.body.pieces or header.strays:
            self._leave_header(header, closed=False)
            self._close_body()
            return
        if self._origin is not Origin.FIRST or len(self._segments) > 1 or self._segments[0].pieces:
            self._count(Repair.TRUNCATED_HEADER)
        self._segments = []

    def _open_header(self, origin: Origin) -> None:
        self._origin = origin
        self._segments = [Segment()]
        self._next_check = 0
        self._interrupted = None

    def _open_part(self, marker: int) -> None:
        self._segments.append(Segment(marker=marker))
        self._next_check = 0

    def _interrupt_body(self, origin: Origin) -> None:
        """A header begins inside a body: a new message, or a stray token after which the body goes on."""
        interrupted = self._sink
        self._close_body()
        self._open_header(origin)
        self._interrupted = interrupted

    def _leave_header(self, header: Header, *, closed: bool) -> None:
        """Deliver what the header held, and begin the body; without `<|message|>` there may be none."""
        self._segments = []
        self._count(*header.repairs)
        for stray in header.strays:
            self._begin_body(stray_sink(stray, header, self._interrupted), starts_message=self._interrupted is None)
            self._append(stray.text.pieces, stray.text.indices)
            self._close_body()
        if header.says_nothing and not closed:
            self._continue_body()
        else:
            if self._interrupted is not None:
                self._count(Repair.MISSING_END)
            if not closed:
                self._count(Repair.MISSING_MESSAGE)
            self._begin_body(self._sink_of(header), starts_message=True)
        self._append(header.body.pieces, header.body.indices)

    def _continue_body(self) -> None:
        """Go on with the body that a stray token interrupted, or with the answer that ended too early."""
        if self._interrupted is not None:
            self._count(Repair.STRAY_SPECIAL)
            self._begin_body(self._interrupted, starts_message=False)
            return
        if self._origin is not Origin.TEXT:
            self._count(Repair.MISSING_MESSAGE)
        self._begin_body(ANSWER, starts_message=self._origin is not Origin.TEXT)

    def _begin_body(self, sink: Sink, *, starts_message: bool) -> None:
        self._sink = sink
        self._text.open(sink, starts_message=starts_message)

    def _append(self, pieces: list[bytes], indices: list[int]) -> None:
        self._text.pending.pieces.extend(pieces)
        self._text.pending.indices.extend(indices)

    def _close_body(self) -> None:
        self._text.close()
        self._sink = None

    def _sink_of(self, header: Header) -> Sink:
        """Return where the message's text goes; a call begins here."""
        receiver = addressee(header)
        self._count(*receiver.repairs)
        if receiver.tool is None:
            return receiver.sink
        index = self._num_tool_calls
        self._num_tool_calls += 1
        self._text.deltas.append(ToolCallStarted(index, receiver.tool))
        return index

    def _count(self, *repairs: Repair) -> None:
        self._repairs.update(repair.value for repair in repairs)
