"""Decide where a message goes, from what its header said."""

from dataclasses import dataclass
from typing import Final

from .header import ANALYSIS, COMMENTARY, FINAL, Header, Stray
from .repairs import Repair
from .text_sink import ANSWER, PREAMBLE, REASONING, Sink

_FUNCTIONS: Final = "functions."
_MAX_NAME_LENGTH: Final = 64
_BUILTIN_TOOLS: Final = ("python", "browser", "container")
_PARTIES: Final = ("user", "system", "developer", "tool")
_NO_TOOLS: Final = ("assistant", "user", "all", "system", "developer")


@dataclass(frozen=True, slots=True)
class Addressee:
    """Whom a message is for: the tool of this name, or, where that is None, REASONING, PREAMBLE or ANSWER."""

    tool: str | None
    sink: Sink
    repairs: tuple[Repair, ...]


def addressee(header: Header) -> Addressee:
    """Return whom the message is for, and what had to be repaired to tell."""
    repairs = []
    if len(header.recipients) > 1:
        repairs.append(Repair.DOUBLED_RECIPIENT)
    if header.author:
        repairs.append(Repair.FOREIGN_ROLE)
    elif header.channel is None and Repair.MISSING_CHANNEL not in header.repairs:
        repairs.append(Repair.MISSING_CHANNEL)
    is_reasoning = header.author or (header.channel and header.channel.startswith(ANALYSIS))
    recipient = _tool_recipient(header)
    if recipient is None:
        sink = REASONING if is_reasoning else PREAMBLE if header.channel == COMMENTARY else ANSWER
        return Addressee(None, sink, tuple(repairs))
    is_builtin = recipient.partition(".")[0] in _BUILTIN_TOOLS
    if is_builtin:
        repairs.append(Repair.BUILTIN_RECIPIENT)
    elif not recipient.startswith(_FUNCTIONS) and Repair.BARE_RECIPIENT not in header.repairs:
        repairs.append(Repair.BARE_RECIPIENT)
    if header.channel == FINAL or (header.channel == ANALYSIS and not is_builtin):
        repairs.append(Repair.MISPLACED_CALL)
    name = recipient.removeprefix(_FUNCTIONS) or recipient
    return Addressee(name[:_MAX_NAME_LENGTH], ANSWER, tuple(repairs))


def _tool_recipient(header: Header) -> str | None:
    """Return the recipient if it is a tool: of several the first function, else the first."""
    if not header.recipients and header.content_type == "json" and not _is_party(header.author):
        return header.author  # a tool as author of JSON: its name slipped into the role's place
    tools = [name for name in header.recipients if name not in _NO_TOOLS]
    functions = [name for name in tools if name.startswith(_FUNCTIONS)]
    return next(iter(functions or tools), None)


def _is_party(author: str | None) -> bool:
    """Tell whether the author is a role, with or without a name ("user", "tool:f"), so that no call can be meant."""
    return author is not None and author.partition(":")[0] in _PARTIES


def stray_sink(stray: Stray, header: Header, interrupted: Sink | None) -> Sink:
    """Return where text goes that no header should hold; `interrupted` is the body in which the header began."""
    if stray.channel is None and interrupted is not None:
        return interrupted
    if header.author or (stray.channel and (header.recipients or stray.channel.startswith(ANALYSIS))):
        return REASONING
    return ANSWER
