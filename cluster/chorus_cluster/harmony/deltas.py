"""What the parser makes of a token stream: typed pieces, in the order the model wrote them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """Text of the answer, or of what the model says before it calls a tool (`is_preamble`).

    `token_indices` are the positions, in the stream fed so far, of the tokens that spell `text`; empty for a paragraph
    break that the parser put between two messages.
    """

    text: str
    token_indices: tuple[int, ...]
    is_preamble: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A call to the tool `name` begins; `index` counts the calls of the stream from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the arguments of the call `index`."""

    index: int
    text: str


Delta = ReasoningDelta | AnswerDelta | ToolCallStarted | ToolCallArguments
