"""What a running chat request produces, before it becomes server-sent events, JSON or protobuf."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token with its log probability (natural logarithm). `text` has U+FFFD where the token isn't whole UTF-8."""

    text: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token of the answer, and the likeliest alternatives at its place, most likely first."""

    sampled: Candidate
    top: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. Completion tokens include reasoning and harmony's own markup."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`logprobs` is empty unless they were asked for; text may be empty where only log probabilities are due."""

    text: str
    logprobs: tuple[Logprob, ...] = ()
    # Whether it is no part of the answer itself, but of what the model says before it, or before it calls a tool.
    is_preamble: bool = False


@dataclass(frozen=True, slots=True)
class Break(Answer):
    """An empty line before another message, which the model did not write."""


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every request that wasn't ended by an error."""

    reason: FinishReason
    usage: Usage


Event = Reasoning | Answer | ToolCallStart | ToolCallArguments | Finished


def merge(events: Iterable[Event]) -> list[Event]:
    """Joins neighbours of one kind, so that a client that fell behind gets one piece of text instead of many."""
    merged: list[Event] = []
    run: list[Event] = []
    for event in events:
        if run and not _same_kind(run[0], event):
            merged.append(_join(run))
            run = []
        run.append(event)
    if run:
        merged.append(_join(run))
    return merged


def _same_kind(first: Event, event: Event) -> bool:
    if isinstance(first, ToolCallArguments):
        return isinstance(event, ToolCallArguments) and first.index == event.index
    if isinstance(first, Answer):
        return type(event) is type(first) is Answer and first.is_preamble == event.is_preamble
    return isinstance(first, Reasoning) and isinstance(event, Reasoning)


def _join(run: list[Event]) -> Event:
    first = run[0]
    if len(run) == 1 or isinstance(first, ToolCallStart | Finished):
        return first
    text = "".join(event.text for event in run if not isinstance(event, ToolCallStart | Finished))
    if isinstance(first, Reasoning):
        return Reasoning(text)
    if isinstance(first, ToolCallArguments):
        return ToolCallArguments(first.index, text)
    logprobs = tuple(entry for event in run if isinstance(event, Answer) for entry in event.logprobs)
    return Answer(text, logprobs, first.is_preamble)
