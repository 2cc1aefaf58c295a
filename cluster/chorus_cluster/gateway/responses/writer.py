"""Events of a running request to the output items of a response, and to OpenAI's server-sent events of them.

This runs for every message of every stream: of a delta's event, all but the text and its number is made once an item.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.openai.sse import encode, logprob_body
from chorus_cluster.gateway.responses.body import Body
from chorus_cluster.gateway.responses.ids import output_item_id
from chorus_cluster.gateway.responses.items import COMMENTARY, FINAL_ANSWER, Item, reasoning_parts, text_part
from chorus_cluster.gateway.responses.sealed import seal
from chorus_cluster.gateway.responses.tools import Toolbox, custom_input

_DELTAS: Final = {
    "reasoning": "response.reasoning_text.delta",
    "message": "response.output_text.delta",
    "function_call": "response.function_call_arguments.delta",
    "custom_tool_call": "response.custom_tool_call_input.delta",
}
_CALLS: Final = ("function_call", "custom_tool_call")
# What a delta's event ends with.
_ENDS: Final = {"reasoning": "}\n\n", "message": ',"logprobs":[]}\n\n'}
_END_OF_CALLS: Final = "}\n\n"
_DATA: Final = "\ndata: "


def sse_event(type: str, number: int, fields: Body) -> str:
    """`fields`: one at least."""
    return _sse_event(type, number, encode(fields))


def _sse_event(type: str, number: int, fields: str) -> str:
    return f'event: {type}\ndata: {{"type":"{type}","sequence_number":{number},{fields[1:]}\n\n'


def read_event(text: str) -> Body:
    """What an event says, of the text that `sse_event` makes of it."""
    event: Body = json.loads(text[text.index(_DATA) + len(_DATA) :])
    return event


def split_events(text: str) -> list[str]:
    """The events of a text that holds whole ones."""
    return [f"{event}\n\n" for event in text.split("\n\n")[:-1]]


@dataclass(slots=True)
class _OpenItem:
    """The item that the model is writing. `delta`: what a delta's event begins with, as far as its number. `is_json`:
    whether it is the input of a custom tool's call with JSON around it."""

    item: Item
    texts: list[str] = field(default_factory=list)
    logprobs: list[ev.Logprob] = field(default_factory=list)
    delta: str = ""
    is_json: bool = False


class ResponseWriter:
    """Collects the output of one response, and returns events as they are sent, numbered from 0 on.

    `writes_events`: whether anyone reads them; without it every method returns none.
    """

    def __init__(self, response_id: str, toolbox: Toolbox, *, sealed_reasoning: bool, writes_events: bool) -> None:
        self.output: list[Item] = []
        self.num_events = 0
        self._response_id = response_id
        self._toolbox = toolbox
        self._sealed_reasoning = sealed_reasoning
        self._writes_events = writes_events
        self._open: _OpenItem | None = None

    def response(self, body: Body, *types: str) -> list[str]:
        """Events that hold the response."""
        return self._events({"response": body}, *types)

    def events(self, events: Iterable[ev.Event]) -> list[str]:
        written: list[str] = []
        for event in events:
            if isinstance(event, ev.Answer):
                written += self._said(event)
            elif isinstance(event, ev.Reasoning):
                written += self._text("reasoning", event.text)
            elif isinstance(event, ev.ToolCallArguments):
                written += self._arguments(event.text)
            elif isinstance(event, ev.ToolCallStart):
                written += self.close() + self._start_call(event)
        return written

    def close(self, *, is_cut: bool = False) -> list[str]:
        """Ends the item that is open, if one is. `is_cut`: before the model did."""
        if self._open is None:
            return []
        opened, self._open = self._open, None
        text = "".join(opened.texts)
        if opened.item["type"] == "reasoning":
            written = self._close_reasoning(opened, text)
        elif opened.item["type"] == "message":
            written = self._close_message(opened, text)
        else:
            written = self._close_call(opened, text)
        if "status" in opened.item:
            opened.item["status"] = "incomplete" if is_cut else "completed"
        return written + self._event("response.output_item.done", self._at() | {"item": opened.item})

    def _said(self, event: ev.Answer) -> list[str]:
        phase = COMMENTARY if event.is_preamble else FINAL_ANSWER
        if isinstance(event, ev.Break) and (self._open is None or self._open.item.get("phase") != phase):
            # Items need no empty line between them.
            return []
        return self._text("message", event.text, event.logprobs, phase)

    def _text(self, kind: str, text: str, logprobs: Sequence[ev.Logprob] = (), phase: str | None = None) -> list[str]:
        """phase: of a message."""
        written: list[str] = []
        opened = self._open
        if opened is None or opened.item["type"] != kind or opened.item.get("phase") != phase:
            written = self.close()
            opened, started = self._start_text(kind, phase)
            written += started
        opened.texts.append(text)
        opened.logprobs += logprobs
        if self._writes_events:
            if logprobs:
                listed = encode([_event_logprob(each) for each in logprobs])
                written.append(self._delta(opened, text, f',"logprobs":{listed}}}\n\n'))
            else:
                written.append(self._delta(opened, text, _ENDS[kind]))
        return written

    def _start_text(self, kind: str, phase: str | None) -> tuple[_OpenItem, list[str]]:
        item: Item = {"id": self._new_id(kind), "type": kind, "status": "in_progress"}
        if kind == "reasoning":
            item |= {"summary": [], "content": []}
            part: Item = {"type": "reasoning_text", "text": ""}
        else:
            item |= {"role": "assistant", "phase": phase, "content": []}
            part = text_part("")
        opened, written = self._start(item)
        return opened, written + self._event("response.content_part.added", self._in_part(item) | {"part": part})

    def _start_call(self, event: ev.ToolCallStart) -> list[str]:
        tool = self._toolbox.called(event.name)
        kind = "custom_tool_call" if tool.is_custom else "function_call"
        item: Item = {"id": self._new_id(kind), "type": kind, "call_id": event.id, "name": tool.name}
        if tool.namespace is not None:
            item["namespace"] = tool.namespace
        item |= {"input": ""} if tool.is_custom else {"arguments": "", "status": "in_progress"}
        opened, written = self._start(item)
        opened.is_json = tool.is_custom and not tool.is_held
        return written

    def _start(self, item: Item) -> tuple[_OpenItem, list[str]]:
        self.output.append(item)
        self._open = _OpenItem(item)
        if self._writes_events:
            type = _DELTAS[item["type"]]
            place = self._in_item(item) if item["type"] in _CALLS else self._in_part(item)
            head = encode({"type": type, **place})
            self._open.delta = f'event: {type}\ndata: {head[:-1]},"sequence_number":'
        return self._open, self._event("response.output_item.added", self._at() | {"item": item})

    def _arguments(self, text: str) -> list[str]:
        opened = self._open
        assert opened is not None, "arguments follow the start of their call"
        opened.texts.append(text)
        # What the input in JSON is, is known only when the JSON is whole.
        if not self._writes_events or opened.is_json:
            return []
        return [self._delta(opened, text, _END_OF_CALLS)]

    def _close_reasoning(self, opened: _OpenItem, text: str) -> list[str]:
        opened.item["content"] = reasoning_parts(text)
        if self._sealed_reasoning:
            opened.item["encrypted_content"] = seal(text)
        place = self._in_part(opened.item)
        part = {"type": "reasoning_text", "text": text}
        written = self._event("response.reasoning_text.done", place | {"text": text})
        return written + self._event("response.content_part.done", place | {"part": part})

    def _close_message(self, opened: _OpenItem, text: str) -> list[str]:
        part = text_part(text, [logprob_body(each) for each in opened.logprobs])
        opened.item["content"] = [part]
        place = self._in_part(opened.item)
        logprobs = [_event_logprob(each) for each in opened.logprobs]
        written = self._event("response.output_text.done", place | {"text": text, "logprobs": logprobs})
        return written + self._event("response.content_part.done", place | {"part": part})

    def _close_call(self, opened: _OpenItem, text: str) -> list[str]:
        place = self._in_item(opened.item)
        if opened.item["type"] == "function_call":
            opened.item["arguments"] = text
            return self._event("response.function_call_arguments.done", place | {"arguments": text})
        input = opened.item["input"] = custom_input(text) if opened.is_json else text
        written = [self._delta(opened, input, _END_OF_CALLS)] if self._writes_events and opened.is_json else []
        return written + self._event("response.custom_tool_call_input.done", place | {"input": input})

    def _new_id(self, kind: str) -> str:
        return output_item_id(kind, self._response_id, len(self.output))

    def _at(self) -> Body:
        # The open item is the last.
        return {"output_index": len(self.output) - 1}

    def _in_item(self, item: Item) -> Body:
        return {"item_id": item["id"], **self._at()}

    def _in_part(self, item: Item) -> Body:
        # All items have one part.
        return {"item_id": item["id"], **self._at(), "content_index": 0}

    def _delta(self, opened: _OpenItem, text: str, end: str) -> str:
        self.num_events += 1
        return f'{opened.delta}{self.num_events - 1},"delta":{encode(text)}{end}'

    def _event(self, type: str, fields: Body) -> list[str]:
        return self._events(fields, type)

    def _events(self, fields: Body, *types: str) -> list[str]:
        """Events of these types; all hold the same."""
        if not self._writes_events:
            return []
        encoded, first = encode(fields), self.num_events
        self.num_events += len(types)
        return [_sse_event(type, number, encoded) for number, type in enumerate(types, first)]


def _event_logprob(entry: ev.Logprob) -> dict[str, Any]:
    """As in items, but without bytes."""
    body = logprob_body(entry)
    return {
        "token": body["token"],
        "logprob": body["logprob"],
        "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in body["top_logprobs"]],
    }
