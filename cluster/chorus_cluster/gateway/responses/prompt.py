"""What the model is asked: instructions, what came before, and the input; and which of these an error is about."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from chorus_cluster.errors import ContextTooLong, InvalidRequest
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.responses.items import Item, to_messages
from chorus_cluster.gateway.responses.request import ResponseRequest
from chorus_cluster.gateway.validate import MAX_CHARACTERS_PER_TOKEN, MAX_ELEMENTS, max_new_tokens
from chorus_cluster.harmony.conversation import Message, Role
from chorus_cluster.harmony.long_runs import encode_text
from chorus_protos.v1 import engine_pb2

_PREVIOUS: Final = "previous_response_id"
# Room that is left for an answer whose length is not limited, where items must give way: a part of the context.
_ROOM_FOR_ANSWER: Final = 0.25
# Markup and names around the text of a message or a call, in tokens; rather too many.
_MARKUP_TOKENS: Final = 24
_MESSAGE_FIELD: Final = re.compile(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\])?(.*)")
_TOOL_FIELD: Final = re.compile(r"tools\[(\d+)\]\.function(.*)")
_FORMAT_FIELD: Final = "response_format.json_schema"
_SUFFIXES: Final = {".tool_call_id": ".call_id", ".function.name": ".name"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """`chat` is whole. `origins`: for each of its messages, the index of its first item in history and input together;
    -1: the instructions."""

    chat: ChatRequest
    origins: Sequence[int]
    num_history: int
    tool_fields: Sequence[str]

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Errors that name a field name it as this API does."""
        try:
            yield
        except InvalidRequest as error:
            field, message = error.args
            raise type(error)(None if field is None else self._name(field), message) from None

    def _name(self, field: str) -> str:
        if match := _TOOL_FIELD.fullmatch(field):
            return self.tool_fields[int(match[1])] + match[2]
        if match := _MESSAGE_FIELD.fullmatch(field):
            origin = self.origins[int(match[1])]
            if origin < 0:
                return "instructions"
            if origin < self.num_history:
                return _PREVIOUS
            suffix = _SUFFIXES.get(match[3], match[3])
            return f"input[{origin - self.num_history + int(match[2] or 0)}]{suffix}"
        if field.startswith(_FORMAT_FIELD):
            return "text.format" + field.removeprefix(_FORMAT_FIELD)
        return "input" if field == "messages" else field


def build_prompt(request: ResponseRequest, history: Sequence[Item]) -> Prompt:
    """`history`: items of the responses before this one. Errors: InvalidRequest."""
    pairs = to_messages([*history, *request.items], request.toolbox)
    if not pairs:
        raise InvalidRequest("input", "must hold at least one message")
    if request.instructions:
        pairs.insert(0, (-1, Message(Role.DEVELOPER, request.instructions)))
    return Prompt(
        replace(request.chat, messages=tuple(message for _, message in pairs)),
        [origin for origin, _ in pairs],
        len(history),
        request.toolbox.fields,
    )


def check(service: ChatService, prompt: Prompt, model: engine_pb2.ModelInfo) -> None:
    """Errors: those that starting it would have before a worker is asked."""
    max_new_tokens(prompt.chat, len(service.render(prompt.chat, model)), model.max_model_len)


def shortened(service: ChatService, prompt: Prompt, model: engine_pb2.ModelInfo, error: ContextTooLong) -> Prompt:
    """The prompt without its oldest messages, so that the others and an answer fit. The instructions stay, and the last
    message, and no tool's result is left without its call.

    Errors: `error`, where that is not possible.
    """
    messages, num_kept = prompt.chat.messages, 1 if prompt.origins[0] < 0 else 0
    room = model.max_model_len
    wanted = prompt.chat.max_tokens or int(room * _ROOM_FOR_ANSWER)
    last = replace(prompt.chat, messages=(*messages[:num_kept], Message(Role.USER, "")))
    left = room - wanted - len(service.render(last, model))
    cut = len(messages)
    called: set[str] = set()
    wanting: set[str] = set()
    # From the newest back, no further than there is room: what is older is not even looked at.
    for index in range(len(messages) - 1, num_kept - 1, -1):
        message = messages[index]
        left -= _num_tokens(message, left)
        if left < 0 or len(messages) - index > MAX_ELEMENTS["messages"] // 2:
            break
        called.update(call.id for call in message.tool_calls)
        if message.role is Role.TOOL and message.tool_call_id is not None:
            wanting.add(message.tool_call_id)
        if wanting <= called:
            cut = index
    if cut == len(messages):
        raise error
    kept = [*range(num_kept), *range(cut, len(messages))]
    return replace(
        prompt,
        chat=replace(prompt.chat, messages=tuple(messages[i] for i in kept)),
        origins=[prompt.origins[i] for i in kept],
    )


def _num_tokens(message: Message, most: int) -> int:
    """Not fewer than it takes. More than `most` need not be counted."""
    texts = [message.content, message.reasoning or "", *(call.arguments for call in message.tool_calls)]
    if sum(map(len, texts)) > max(most, 0) * MAX_CHARACTERS_PER_TOKEN:
        return most + 1
    return sum(len(encode_text(text)) for text in texts) + _MARKUP_TOKENS * (1 + len(message.tool_calls))
