"""Events to the server-sent events of OpenAI's streaming chat completions.

This runs for every message of every stream, so chunks are put together from text prepared once a stream: only what is
new is encoded. Non-ASCII text is escaped, since some clients split lines at characters like U+2028.
"""

import json
from collections.abc import Iterable
from typing import Any

from chorus_cluster.errors import ChorusError
from chorus_cluster.gateway import events as ev

DONE = b"data: [DONE]\n\n"

encode = json.JSONEncoder(separators=(",", ":")).encode


class ChunkWriter:
    """Writes the chunks of one answer. Each method returns whole events, ready to be sent.

    `index`: of the answer, among those of its request.
    """

    def __init__(self, id: str, created: int, model: str, *, include_usage: bool, index: int = 0) -> None:
        head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = f"data: {encode(head)[:-1]}"
        self._prefix = f'{self._head},"choices":[{{"index":{index},"delta":'
        usage = ',"usage":null' if include_usage else ""
        self._suffix = f',"logprobs":null,"finish_reason":null}}]{usage}}}\n\n'
        self._usage = usage
        self._include_usage = include_usage

    def first(self) -> bytes:
        """The first chunk, with the role."""
        return self._chunk('{"role":"assistant","content":""}').encode()

    def events(self, events: Iterable[ev.Event]) -> bytes:
        """The chunks of some events."""
        return "".join(map(self._event, events)).encode()

    def end(self, usage: ev.Usage) -> bytes:
        """After the last chunk of all answers: the usage if it was asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return f'{self._head},"choices":[],"usage":{encode(usage_body(usage))}}}\n\n'.encode() + DONE

    def error(self, error: ChorusError) -> bytes:
        """An error after the first chunk, and the end mark."""
        return error_events(error)

    def _chunk(self, delta: str) -> str:
        return f"{self._prefix}{delta}{self._suffix}"

    def _event(self, event: ev.Event) -> str:
        if isinstance(event, ev.Answer):
            if event.logprobs:
                return self._answer_with_logprobs(event)
            return f'{self._prefix}{{"content":{encode(event.text)}}}{self._suffix}'
        if isinstance(event, ev.Reasoning):
            return f'{self._prefix}{{"reasoning":{encode(event.text)}}}{self._suffix}'
        if isinstance(event, ev.ToolCallArguments):
            call = f'{{"index":{event.index},"function":{{"arguments":{encode(event.text)}}}}}'
            return self._chunk(f'{{"tool_calls":[{call}]}}')
        if isinstance(event, ev.ToolCallStart):
            function = {"name": event.name, "arguments": ""}
            start = {"index": event.index, "id": event.id, "type": "function", "function": function}
            return self._chunk(encode({"tool_calls": [start]}))
        return self._finished(event)

    def _answer_with_logprobs(self, event: ev.Answer) -> str:
        logprobs = encode({"content": [logprob_body(entry) for entry in event.logprobs]})
        end = f',"logprobs":{logprobs},"finish_reason":null}}]{self._usage}}}\n\n'
        return f'{self._prefix}{{"content":{encode(event.text)}}}{end}'

    def _finished(self, event: ev.Finished) -> str:
        return f'{self._prefix}{{}},"logprobs":null,"finish_reason":"{event.reason}"}}]{self._usage}}}\n\n'


def error_events(error: ChorusError) -> bytes:
    """The event of an error that ends a stream, and the end mark."""
    return f"data: {encode(error.body())}\n\n".encode() + DONE


def usage_body(usage: ev.Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def logprob_body(entry: ev.Logprob) -> dict[str, Any]:
    """One element of OpenAI's `logprobs.content`."""
    return {**_candidate_body(entry.sampled), "top_logprobs": [_candidate_body(other) for other in entry.top]}


def _candidate_body(candidate: ev.Candidate) -> dict[str, Any]:
    return {
        "token": candidate.text,
        "logprob": finite_logprob(candidate),
        "bytes": list(candidate.token_bytes),
    }


def finite_logprob(candidate: ev.Candidate) -> float:
    """JSON has no infinity; OpenAI sends -9999 for a token that can't be."""
    return max(candidate.logprob, -9999.0)
