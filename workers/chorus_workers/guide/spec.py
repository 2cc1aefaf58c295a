"""A guide as it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class GrammarKind(StrEnum):
    """How a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A JSON schema as JSON text, a regular expression, or a grammar in llguidance's dialect of Lark or in EBNF."""

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class GuidedMessage:
    """A message that the answer may have."""

    # Its header, `<|message|>` included. The answer's first header begins with the first generated token. Empty: the
    # answer is the body of this message, the only one.
    header: Sequence[int]
    # What ends its body: END, and whichever stop tokens may end the answer there; without a header the request's.
    end_token_ids: frozenset[int]
    # What its body must be; None: anything.
    grammar: Grammar | None = None
    # Whether its body counts as reasoning.
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class GuideSpec:
    """Messages that may follow one another in any order and number."""

    # What comes between the token that ends a message and the next one's header.
    opening: Sequence[int]
    messages: Sequence[GuidedMessage]
    # Most tokens of reasoning. None: any number.
    max_reasoning_tokens: int | None = None
    # Whether no message of reasoning follows another.
    reasons_once: bool = False

    @property
    def grammars(self) -> frozenset[Grammar]:
        return frozenset(message.grammar for message in self.messages if message.grammar is not None)
