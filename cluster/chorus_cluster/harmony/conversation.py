"""A chat as the gateway knows it: plain frozen data, independent of HTTP, protobuf and harmony's own classes."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal


class InvalidConversation(ValueError):
    """The conversation can't be rendered.

    Attributes:
        field: where the fault is, as the chat API spells it, e.g. `messages[2].tool_call_id`.
        message: what is wrong, and what would be right; safe to show to the client.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class ConversationTooLong(InvalidConversation):
    """The conversation's texts alone take more tokens than the prompt may have."""


class Role(StrEnum):
    """Who wrote a message, in the chat API's terms."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Effort(StrEnum):
    """How long the model shall reason."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made; `arguments` is the text it wrote, normally JSON."""

    id: str
    name: str
    arguments: str
    # Whether it is text of a tool that has an input grammar, and no JSON is meant.
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class InputGrammar:
    """What the text of a tool's calls must follow: a Lark grammar, in llguidance's dialect, or a regular expression."""

    syntax: Literal["lark", "regex"]
    definition: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema, None for a function without any.

    With an `input_grammar` a call is no JSON, but text that follows the grammar.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    # Whether arguments must follow the schema. Not for the model's eyes.
    strict: bool = False
    # Told to the model by whoever makes the tool, in its description.
    input_grammar: InputGrammar | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A JSON schema that the answer shall follow, as the developer message announces it to the model."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the chat API.

    `reasoning` and `tool_calls` belong to the assistant; `tool_call_id` to a tool's result, where `name` may stand in
    if the call itself is not part of the conversation.
    """

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    # Whether an assistant's message without calls is no answer, but comes before one, or before calls.
    is_preamble: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that the model is told; `current_date` None leaves the date out of the system message."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    effort: Effort = Effort.MEDIUM
    current_date: datetime.date | None = None
    response_format: ResponseFormat | None = None
