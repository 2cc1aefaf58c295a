"""Read a message header: what stands between `<|start|>` and `<|message|>`.

A well-formed one is `role [to=recipient] [<|channel|>channel [to=recipient]] [ [<|constrain|>]content type]`. This
reader takes what follows that grammar, notes what was wrong, and gives back the rest: where a `<|message|>` was lost,
the rest is the body, and must not be lost with it.
"""

import itertools
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from chorus_vocabulary import CHANNEL, CONSTRAIN

from .repairs import Repair

ANALYSIS: Final = "analysis"
COMMENTARY: Final = "commentary"
FINAL: Final = "final"
_CHANNELS: Final = (ANALYSIS, COMMENTARY, FINAL)

_ASSISTANT: Final = re.compile(r"\s*assistant(?::[\w-]+)?")
_PARTY: Final = re.compile(r"\s*((?:user|system|developer|tool)(?::[\w-]+)?)(?!\w)")
_TOOL: Final = re.compile(r"\s*((?:functions|browser|container)\.[\w.-]+|python(?!\w)|[\w.-]+(?=\s+to=assistant))")
_CHANNEL: Final = re.compile(r"\s*(analysis|commentary|final)(?![_-])")
_UNMARKED_CHANNEL: Final = re.compile(r"(analysis|commentary|final)(?![_-])")
_OTHER_CHANNEL: Final = re.compile(r"\s*([\w-]+)(?=\s*$|\s+to=|\s+json\s*$)")
_RECIPIENT: Final = re.compile(r"\s*to=\s*([\"']?)((?:functions/)?[A-Za-z0-9_.-]+)")
_CHANNEL_AT_END: Final = re.compile(r"(?<=.)(?:analysis|commentary|final)$")
# "to=" lost, doubled, misspelled, or with a part missing. A function that speaks ("functions.f to=assistant") is not
# called.
_DAMAGED_RECIPIENT: Final = re.compile(
    r"[\s=:]*(?:to[\s=:]*)*([\"']?)(functions[./][A-Za-z0-9_.-]+)(?=\1(?:\s|$))(?!\1\s+to=)"
)
_BARE_FUNCTION: Final = re.compile(r"\s+(functions\.[A-Za-z0-9_.-]+)")
_BARE_WORD: Final = re.compile(r"\s+([A-Za-z0-9_-]+)")
_BARE_NAME_WITH_TYPE: Final = re.compile(r"\s+(?!json)([A-Za-z_][A-Za-z0-9_.-]*)(?=\s+json\s*$)")
_BARE_NAME: Final = re.compile(r"\s+(?!json)([A-Za-z_][A-Za-z0-9_.-]*)(?=\s*$)")
_CONTENT_TYPE: Final = re.compile(r"\s*(json|code|text)")
_OTHER_CONTENT_TYPE: Final = re.compile(r"\s*([\w.+/-]{1,32})(?=\s*$|\s+to=)")


class Origin(Enum):
    """How a header began."""

    FIRST = auto()
    """The stream's first: the prompt ended with `<|start|>assistant`."""
    START = auto()
    """After `<|start|>`."""
    TEXT = auto()
    """Text after the end of a message, without `<|start|>`."""
    CHANNEL = auto()
    """After `<|channel|>`, without `<|start|>` and role."""


@dataclass(slots=True)
class Pieces:
    """Bytes of a stretch of text tokens, with the tokens' positions in the stream."""

    pieces: list[bytes] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)

    def append(self, piece: bytes, index: int) -> None:
        self.pieces.append(piece)
        self.indices.append(index)

    def after(self, num_bytes: int) -> "Pieces":
        """Return what follows the first `num_bytes` bytes."""
        end = 0
        for position, piece in enumerate(self.pieces):
            end += len(piece)
            if end > num_bytes:
                first = piece[num_bytes - end :]
                return Pieces([first, *self.pieces[position + 1 :]], self.indices[position:])
        return Pieces()


@dataclass(slots=True)
class Segment(Pieces):
    """The text after one marker of a header: `<|channel|>`, `<|constrain|>`, or None for the role's part."""

    marker: int | None = None

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode(errors="replace")


@dataclass(slots=True)
class Stray:
    """Text that no header should hold, and the channel (None: not known) in whose part of the header it stood."""

    text: Pieces
    channel: str | None


@dataclass(slots=True)
class Header:
    """What a header said. `body` is the text that must be the message's body, as no `<|message|>` came before it."""

    author: str | None = None
    channel: str | None = None
    recipients: list[str] = field(default_factory=list)
    content_type: str | None = None
    has_assistant: bool = False
    strays: list[Stray] = field(default_factory=list)
    body: Pieces = field(default_factory=Pieces)
    repairs: list[Repair] = field(default_factory=list)

    @property
    def says_nothing(self) -> bool:
        """Whether neither role, channel nor recipient could be read."""
        return not (self.author or self.channel or self.recipients or self.has_assistant)


def read_header(
    segments: list[Segment], origin: Origin, tools: tuple[str, ...] = (), *, closed: bool, cut: bool = False
) -> Header:
    """Read a header of the stream.

    Args:
        segments: its parts, the role's first.
        origin: how it began.
        tools: recipients that were declared, as in `functions.get_weather`.
        closed: whether `<|message|>` ended it.
        cut: whether the stream ended inside of it, so that its last word may be incomplete.
    """
    reader = _Reader(segments, origin, tools, closed)
    for position, segment in enumerate(segments):
        # A content type has no channel behind it.
        ends = (segment.marker, CHANNEL)
        reader.read(segment, is_last_of_kind=all(later.marker not in ends for later in segments[position + 1 :]))
        rest = segment.after(reader.num_bytes_read)
        rest_text = b"".join(rest.pieces).decode(errors="replace")
        is_last = position == len(segments) - 1
        if not rest_text.strip() or (cut and is_last and _may_be_header(rest_text.strip(), segment.marker, origin)):
            continue
        if is_last and not closed:
            reader.header.body = rest
        else:
            reader.header.strays.append(Stray(rest, reader.header.channel))
            reader.header.repairs.append(Repair.UNEXPECTED_HEADER_TEXT)
    return reader.header


def _may_be_header(word: str, marker: int | None, origin: Origin) -> bool:
    """Tell whether `word`, after which the stream was cut, can be the beginning of a header's word."""
    whole: tuple[str, ...] = ("to=",)
    if marker == CHANNEL:
        whole += _CHANNELS
    elif marker == CONSTRAIN:
        whole += ("json",)
    elif origin is Origin.START:
        whole += ("assistant", "functions.")
    return any(candidate.startswith(word) for candidate in whole)


class _Reader:
    """A cursor over the segments of one header; fills `header`."""

    def __init__(self, segments: list[Segment], origin: Origin, tools: tuple[str, ...], closed: bool) -> None:
        self.header = Header()
        self.tools = tools
        self.origin = origin
        self.closed = closed
        channel_texts = [segment.text for segment in segments if segment.marker == CHANNEL]
        self.has_channel_part = bool(channel_texts)
        self.has_known_channel_part = any(_CHANNEL.match(text) for text in channel_texts)
        self.has_constraint = any(segment.marker == CONSTRAIN for segment in segments)
        self.text = ""
        self.position = 0
        self.token_ends: set[int] = set()

    @property
    def num_bytes_read(self) -> int:
        return len(self.text[: self.position].encode())

    def read(self, segment: Segment, *, is_last_of_kind: bool) -> None:
        self.text = segment.text
        self.position = 0
        self.token_ends = set(itertools.accumulate(map(len, segment.pieces)))
        if segment.marker == CHANNEL:
            self._read_channel(any_word=self.closed and is_last_of_kind)
            self._read_recipients()
            self._read_damaged_recipient()
            self._read_bare_recipient()
            if self.closed or self.header.recipients:
                self._read_content_type()
        elif segment.marker == CONSTRAIN:
            self._read_content_type(any_word=self.closed and is_last_of_kind)
            self._read_recipients()
        else:
            self._read_role()
            self._read_recipients()
            self._read_damaged_recipient()
            if self.closed and not self.has_channel_part:
                self._read_content_type()

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def _take_token(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Take a match only where a token ends too: "final" before "The", but not in "finally"."""
        match = pattern.match(self.text, self.position)
        if match and self._is_token_end(match.end()):
            self.position = match.end()
            return match
        return None

    def _is_token_end(self, position: int) -> bool:
        return len(self.text[:position].encode()) in self.token_ends

    def _read_role(self) -> None:
        header = self.header
        # A text that happens to begin with a role's name is no header: something else must speak for one.
        confirmed = self.closed or self.has_known_channel_part
        may_be_assistant = self.origin is not Origin.CHANNEL or self.has_known_channel_part
        if may_be_assistant and self._take_token(_ASSISTANT):
            header.has_assistant = True
            if self.origin is Origin.FIRST:
                header.repairs.append(Repair.DOUBLED_START)
        elif self.origin is Origin.START or confirmed:
            if party := self._take(_PARTY):
                header.author = party[1]
            elif tool := _TOOL.match(self.text, self.position):
                header.author = self._cut_name(tool[1], tool.start(1))
                self.position = tool.start(1) + len(header.author)
        may_be_channel = header.has_assistant or self.origin in (Origin.START, Origin.FIRST) or confirmed
        if may_be_channel and not self.has_channel_part and (channel := self._take_token(_UNMARKED_CHANNEL)):
            header.channel = channel[1]
            header.repairs.append(Repair.MISSING_CHANNEL)

    def _read_channel(self, *, any_word: bool) -> None:
        header = self.header
        channel = self._take_token(_CHANNEL)
        if channel is None and (any_word or "to=" in self.text) and (channel := self._take(_OTHER_CHANNEL)):
            header.repairs.append(Repair.UNKNOWN_CHANNEL)
        if channel is None:
            return
        if header.channel is not None:
            header.repairs.append(Repair.DOUBLED_CHANNEL)
        header.channel = channel[1]

    def _read_recipients(self) -> None:
        header = self.header
        while recipient := _RECIPIENT.match(self.text, self.position):
            self._take_recipient(recipient)
            if recipient[1] or not recipient[2].startswith(header.recipients[-1]):
                header.repairs.append(Repair.BARE_RECIPIENT)
            if not self.has_channel_part and (channel := self._take_token(_UNMARKED_CHANNEL)):
                header.channel = channel[1]
                header.repairs.append(Repair.MISSING_CHANNEL)

    def _take_recipient(self, match: re.Match[str]) -> None:
        """Take the name, group 2, and what quotes it, group 1."""
        quote = match[1]
        name = self._cut_name(match[2].replace("/", "."), match.start(2))
        self.position = match.start(2) + len(name)
        if quote and self.text.startswith(quote, self.position):
            self.position += 1
        self.header.recipients.append(name)

    def _cut_name(self, written: str, start: int) -> str:
        """Return the tool's name without what sticks to it where a special token after it was lost."""
        known = (*self.header.recipients, *self.tools)
        # Also where a part of "functions." was lost.
        names = [
            name for whole in known for part in ("", "functions", "functions.") if (name := whole.removeprefix(part))
        ]
        if written in names:
            return written
        fitting = [name for name in names if written.startswith(name) and self._is_token_end(start + len(name))]
        channel = None if self.has_channel_part else _CHANNEL_AT_END.search(written)
        if not fitting and channel and self._is_token_end(start + channel.start()):
            fitting = [written[: channel.start()]]
        return max(fitting, key=len, default=written)

    def _read_damaged_recipient(self) -> None:
        """Take a function's full name without a whole "to=", wherever a recipient may stand.

        Only where `<|message|>` says that this is a header: elsewhere, it may be a text that speaks of the function.
        """
        header = self.header
        if not self.closed or header.recipients or header.author:
            return
        if damaged := _DAMAGED_RECIPIENT.match(self.text, self.position):
            self._take_recipient(damaged)
            header.repairs.append(Repair.BARE_RECIPIENT)

    def _read_bare_recipient(self) -> None:
        """Take a recipient without "to=": a function's full name, a declared one, or a word that JSON is meant for."""
        header = self.header
        if header.recipients or header.channel is None:
            return
        if not self.closed and header.channel != COMMENTARY:
            return  # The body's first word may happen to be a tool's name.
        bare = self._take(_BARE_FUNCTION)
        if (
            bare is None
            and (word := _BARE_WORD.match(self.text, self.position))
            and f"functions.{word[1]}" in self.tools
        ):
            bare = self._take(_BARE_WORD)
        if bare is None and self.closed and header.channel == COMMENTARY:
            bare = self._take(_BARE_NAME if self.has_constraint else _BARE_NAME_WITH_TYPE)
        if bare:
            header.recipients.append(bare[1])
            header.repairs.append(Repair.BARE_RECIPIENT)

    def _read_content_type(self, *, any_word: bool = False) -> None:
        content_type = self._take_token(_CONTENT_TYPE)
        if content_type is None and any_word:
            content_type = self._take(_OTHER_CONTENT_TYPE)
        if content_type:
            self.header.content_type = content_type[1]
