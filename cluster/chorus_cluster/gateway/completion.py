"""A stream of events, collected: what a request without `stream` is answered."""

from dataclasses import dataclass, field

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.harmony.conversation import ToolCall


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `content` is None where the model called a tool and said nothing."""

    id: str
    # Seconds since the epoch.
    created: int
    model: str
    content: str | None
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    # Empty unless asked for.
    logprobs: tuple[ev.Logprob, ...]
    finished: ev.Finished


@dataclass(slots=True)
class _Collected:
    answer: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ev.ToolCallStart] = field(default_factory=list)
    arguments: list[list[str]] = field(default_factory=list)
    logprobs: list[ev.Logprob] = field(default_factory=list)


async def collect(stream: ChatStream) -> Completion:
    """Reads a stream to its end; closing it is the caller's.

    Errors: those of the stream.
    """
    collected = _Collected()
    finished: ev.Finished | None = None
    async for events in stream:
        for event in events:
            if isinstance(event, ev.Finished):
                finished = event
            else:
                _add(collected, event)
    assert finished is not None, "a stream ends with Finished or an error"
    calls = tuple(
        ToolCall(call.id, call.name, "".join(parts))
        for call, parts in zip(collected.calls, collected.arguments, strict=True)
    )
    answer = "".join(collected.answer)
    return Completion(
        id=stream.id,
        created=stream.created,
        model=stream.model,
        content=answer if answer or not calls else None,
        reasoning="".join(collected.reasoning) or None,
        tool_calls=calls,
        logprobs=tuple(collected.logprobs),
        finished=finished,
    )


def _add(collected: _Collected, event: ev.Reasoning | ev.Answer | ev.ToolCallStart | ev.ToolCallArguments) -> None:
    if isinstance(event, ev.Answer):
        collected.answer.append(event.text)
        collected.logprobs.extend(event.logprobs)
    elif isinstance(event, ev.Reasoning):
        collected.reasoning.append(event.text)
    elif isinstance(event, ev.ToolCallStart):
        collected.calls.append(event)
        collected.arguments.append([])
    else:
        collected.arguments[event.index].append(event.text)
