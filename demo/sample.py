"""What a generated conversation is: the messages a client would send, and the one completion that counts as right.

The completion is a function of the conversation alone (no synonyms drawn by chance), so that greedy decoding has one
right answer, and teacher-forced exact match equals generated exact match.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Effort = Literal["low", "medium", "high"]
# Keys that begin with this are never held out: the plain wording of what everybody asks first.
ALWAYS_TRAINED = "always "
EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    # JSON text, keys in the order in which the tool declares them.
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    # A JSON schema of type object, or None for a tool without parameters.
    parameters: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `tool_call` is set on assistant messages that call; `name` on tool results."""

    role: Literal["developer", "user", "assistant", "tool"]
    content: str = ""
    reasoning: str = ""
    tool_call: ToolCall | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What the assistant must write: reasoning (may be empty), then an answer or one tool call."""

    reasoning: str
    content: str = ""
    tool_call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A user's text with its answer; `reasoning` holds one text for each effort. `key` names the content for the
    held-out split: two questions about the same thing share it, however they are worded."""

    task: str
    key: str
    text: str
    answer: str
    reasoning: Mapping[str, str]
    # A JSON schema sent along as the response format.
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    task: str
    key: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    effort: Effort
    date: datetime.date
    target: Target
    # A JSON schema that the answer follows, or None.
    schema: Mapping[str, Any] | None = None
