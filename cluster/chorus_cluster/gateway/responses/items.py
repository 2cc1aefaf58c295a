"""Items of the Responses API: from a body to the form they are kept in, and from there to a conversation.

An item is kept as the API's own JSON object, with its id, text parts as a list, and the reasoning in the clear, whether
a client sent it or the model made it. So one reader makes messages of a stored response's input and output, and of new
items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.responses import models as wire
from chorus_cluster.gateway.responses.ids import new_item_id
from chorus_cluster.gateway.responses.sealed import NotSealedHere, unseal
from chorus_cluster.gateway.responses.tools import Toolbox, custom_arguments, harmony_name
from chorus_cluster.harmony.conversation import Message, Role, ToolCall

Item = dict[str, Any]

_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_MAX_ID_LENGTH: Final = 64
# What a message of the assistant is: said before calls or an answer, or the answer.
COMMENTARY: Final = "commentary"
FINAL_ANSWER: Final = "final_answer"


def read_items(input: "str | Sequence[wire.InputItem] | None") -> list[Item]:
    """The input as it is kept, but for references to items that are kept already. Errors: InvalidRequest."""
    if isinstance(input, str):
        input = [wire.MessageItem(role="user", content=input)]
    return [_read_item(item, f"input[{i}]") for i, item in enumerate(input or ())]


def _read_item(item: "wire.InputItem", where: str) -> Item:
    if isinstance(item, wire.ItemReference):
        return {"type": item.type, "id": item.id}
    kind = item.type or wire.MESSAGE
    id = item.id if item.id and len(item.id) <= _MAX_ID_LENGTH else new_item_id(kind)
    if isinstance(item, wire.ReasoningItem):
        text = _reasoning_text(item, where)
        return {"id": id, "type": kind, "summary": [], "content": reasoning_parts(text)}
    kept: Item = {"id": id, "type": kind, "status": "completed"}
    if isinstance(item, wire.MessageItem):
        phase = {"phase": item.phase} if item.phase and item.role == "assistant" else {}
        return kept | {"role": item.role, **phase, "content": _message_parts(item, f"{where}.content")}
    if isinstance(item, wire.FunctionCallItem | wire.CustomCallItem):
        kept |= {"call_id": item.call_id, "name": item.name}
        kept |= {} if item.namespace is None else {"namespace": item.namespace}
        given = {"input": item.input} if isinstance(item, wire.CustomCallItem) else {"arguments": item.arguments}
        return kept | given
    output = item.output
    if not isinstance(output, str):
        output = "".join(_part_text(part, f"{where}.output[{i}]") for i, part in enumerate(output))
    return kept | {"call_id": item.call_id, "output": output}


def reasoning_parts(text: str) -> list[Item]:
    return [{"type": "reasoning_text", "text": text}] if text else []


def text_part(text: str, logprobs: Sequence[Item] = ()) -> Item:
    """A part of what the assistant says."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _reasoning_text(item: wire.ReasoningItem, where: str) -> str:
    if item.content:
        return "\n\n".join(part.text for part in item.content)
    if not item.encrypted_content:
        return ""
    try:
        return unseal(item.encrypted_content)
    except NotSealedHere:
        raise InvalidRequest(f"{where}.encrypted_content", "was not made by this server, or was changed") from None


def _message_parts(item: wire.MessageItem, where: str) -> list[Item]:
    is_answer = item.role == "assistant"
    parts = [wire.Part(type="text", text=item.content)] if isinstance(item.content, str) else item.content
    texts = [_part_text(part, f"{where}[{i}]") for i, part in enumerate(parts)]
    return [text_part(text) if is_answer else {"type": "input_text", "text": text} for text in texts]


def _part_text(part: wire.Part, where: str) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if part.type not in _TEXT_PARTS:
        raise InvalidRequest(f"{where}.type", "must be 'input_text' or 'output_text': gpt-oss reads text alone")
    if part.text is None:
        raise InvalidRequest(f"{where}.text", "is required")
    return part.text


@dataclass(slots=True)
class _Turn:
    """What the assistant says at a time: one message with its reasoning and calls."""

    origin: int
    reasoning: list[str]
    content: str | None = None
    # Of its message; None: not known.
    phase: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    def to_message(self) -> Message:
        return Message(
            Role.ASSISTANT,
            self.content or "",
            reasoning="\n\n".join(self.reasoning) or None,
            tool_calls=tuple(self.calls),
            is_preamble=self.phase == COMMENTARY,
        )

    def goes_on_with_a_call(self, *, has_reasoning: bool) -> bool:
        """Whether a call belongs to this turn. What is said before calls is commentary, unless it is known to be an
        answer."""
        if self.phase == FINAL_ANSWER:
            return False
        return not (has_reasoning and (self.calls or self.phase == COMMENTARY))


def to_messages(items: Sequence[Item], toolbox: Toolbox) -> list[tuple[int, Message]]:
    """(index of its first item, message). Reasoning that leads to no message and no call is left out: gpt-oss goes on
    from none but that of calls. toolbox: it says how the calls of its tools are written."""
    messages: list[tuple[int, Message]] = []
    turn: _Turn | None = None
    reasoning: list[str] = []

    def end_turn() -> None:
        nonlocal turn
        if turn is not None:
            messages.append((turn.origin, turn.to_message()))
        turn = None

    for index, item in enumerate(items):
        kind = item["type"]
        if kind == "reasoning":
            reasoning += [part["text"] for part in item["content"]]
        elif kind == "message" and item["role"] == "assistant":
            end_turn()
            turn, reasoning = _Turn(index, reasoning, _content(item), item.get("phase")), []
        elif kind in ("function_call", "custom_tool_call"):
            if turn is not None and not turn.goes_on_with_a_call(has_reasoning=bool(reasoning)):
                end_turn()
            if turn is None:
                turn = _Turn(index, [])
            turn.reasoning += reasoning
            turn.calls.append(_to_call(item, toolbox))
            reasoning = []
        else:
            end_turn()
            reasoning = []
            messages.append((index, _to_message(item)))
    end_turn()
    return messages


def _to_message(item: Item) -> Message:
    if item["type"] == "message":
        return Message(Role(item["role"]), _content(item))
    return Message(Role.TOOL, item["output"], tool_call_id=item["call_id"])


def _content(item: Item) -> str:
    return "".join(part["text"] for part in item["content"])


def _to_call(item: Item, toolbox: Toolbox) -> ToolCall:
    id, name = item["call_id"], harmony_name(item["name"], item.get("namespace"))
    if item["type"] != "custom_tool_call":
        return ToolCall(id, name, item["arguments"])
    if toolbox.called(name).is_held:
        return ToolCall(id, name, item["input"], is_text=True)
    return ToolCall(id, name, custom_arguments(item["input"]))
