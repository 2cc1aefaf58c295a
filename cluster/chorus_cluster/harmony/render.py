"""Render a conversation to the token ids that gpt-oss completes.

openai-harmony's renderer does the writing, so prompts are what the model was trained on. It encodes all text as plain
text: `<|end|>` in a message is seven ordinary tokens. What stands in headers (author, recipient) is not delimited by
special tokens, so names are held to `[A-Za-z0-9_-]`, and whatever else could harm the renderer is dealt with here: lone
surrogates, runs of text that would cost quadratic time (see `long_runs`), schemas that it can't read.

How roles of the chat API map to harmony: docs/decisions/010-chat-roles-in-harmony.md.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import openai_harmony as oh

from .conversation import (
    Conversation,
    ConversationTooLong,
    Effort,
    InvalidConversation,
    Message,
    ResponseFormat,
    Role,
    Tool,
    ToolCall,
)
from .encoding import load_encoding
from .long_runs import encode_text, has_long_run, split_long_runs

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A model may call what nobody declared (`browser.search`); the client must be able to send that call back.
_CALLED_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EFFORTS: Final = {
    Effort.LOW: oh.ReasoningEffort.LOW,
    Effort.MEDIUM: oh.ReasoningEffort.MEDIUM,
    Effort.HIGH: oh.ReasoningEffort.HIGH,
}
_INSTRUCTIONS_ROLES: Final = (Role.SYSTEM, Role.DEVELOPER)
# Characters per token below which a text is just rendered: most have more, and counting first costs as much again.
_SHORT_TEXT: Final = 4
_SLICE: Final = 8192
# A word that is cut in two may take more tokens than in one; nobody is refused for those.
_TOKENS_OF_A_CUT: Final = 8
# ValueError is what it makes of JSON that it can't read.
_RENDERER_ERRORS: Final = (oh.HarmonyError, ValueError)
# How the model's calls say what they are; text is "code", as in its calls of Python.
_JSON_TYPE: Final = "<|constrain|>json"
_TEXT_TYPE: Final = "code"
_KEEP_ALL: Final = oh.RenderConversationConfig(auto_drop_analysis=False)


def render(conversation: Conversation, max_tokens: int | None = None) -> list[int]:
    """Return the prompt's token ids; they end with `<|start|>assistant`.

    Args:
        conversation: what the model is told.
        max_tokens: with it, texts that are far too long are refused before they cost as much as rendering them
            would; a prompt that is returned may still have more tokens.

    Raises:
        InvalidConversation: a field can't be rendered; names the field.
        ConversationTooLong: the texts take more than `max_tokens`.
        VocabularyError: the vocabulary can't be loaded.
    """
    if max_tokens is not None:
        _check_length(conversation, max_tokens)
    _, *messages = to_harmony(conversation)
    system = _render_system(conversation.effort, conversation.current_date, has_tools=bool(conversation.tools))
    try:
        rest: list[int] = load_encoding().render_conversation_for_completion(
            oh.Conversation(messages=messages), oh.Role.ASSISTANT, _KEEP_ALL
        )
    except _RENDERER_ERRORS:
        raise _unreadable_schema(conversation.tools) from None
    return [*system, *rest]


def to_harmony(conversation: Conversation) -> list[oh.Message]:
    """Return the messages of harmony that stand for `conversation`, reasoning dropped where gpt-oss expects none.

    Raises:
        InvalidConversation: a field can't be rendered.
    """
    if not conversation.messages:
        raise InvalidConversation("messages", "at least one message is needed")
    num_leading = _num_leading_instructions(conversation.messages)
    messages = [_system(conversation.effort, conversation.current_date), *_developer(conversation, num_leading)]
    first_open = _first_message_of_open_turn(conversation.messages)
    called: dict[str, str] = {}
    for index, message in enumerate(conversation.messages):
        field = f"messages[{index}]"
        _validate(message, field)
        if index < num_leading:
            continue
        match message.role:
            case Role.ASSISTANT:
                messages += _assistant(message, field, keep_reasoning=index >= first_open)
                called.update((call.id, call.name) for call in message.tool_calls)
            case Role.TOOL:
                messages.append(_tool_result(message, field, called))
            case Role.USER:
                messages.append(_message(oh.Author(role=oh.Role.USER, name=message.name), message.content))
            case _:
                messages += _late_instructions(message)
    return messages


def _check_length(conversation: Conversation, max_tokens: int) -> None:
    """Count the tokens of long texts slice by slice, and give up as soon as there are too many."""
    texts = [tool.description for tool in conversation.tools]
    first_open = _first_message_of_open_turn(conversation.messages)
    for index, message in enumerate(conversation.messages):
        texts += [message.content, *(call.arguments for call in message.tool_calls)]
        if message.reasoning and index >= first_open:
            texts.append(message.reasoning)
    if sum(map(len, texts)) <= _SHORT_TEXT * max_tokens:
        return
    num_tokens = 0
    for text in texts:
        for start in range(0, len(text), _SLICE):
            num_tokens += max(0, len(encode_text(_clean(text[start : start + _SLICE]))) - _TOKENS_OF_A_CUT)
            if num_tokens > max_tokens:
                raise ConversationTooLong("messages", f"take more than the {max_tokens} tokens of the model's context")


def _num_leading_instructions(messages: Sequence[Message]) -> int:
    return next((i for i, m in enumerate(messages) if m.role not in _INSTRUCTIONS_ROLES), len(messages))


def _first_message_of_open_turn(messages: Sequence[Message]) -> int:
    """Return the index after the last answer: from there on the model is still inside a tool loop."""
    answers = (i for i, m in enumerate(messages) if m.role is Role.ASSISTANT and not m.tool_calls and not m.is_preamble)
    return max(answers, default=-1) + 1


def _system(effort: Effort, current_date: datetime.date | None) -> oh.Message:
    content = oh.SystemContent(reasoning_effort=_EFFORTS[effort])
    if current_date is not None:
        content = content.with_conversation_start_date(current_date.isoformat())
    return _message(oh.Author(role=oh.Role.SYSTEM), content)


@functools.lru_cache(maxsize=32)
def _render_system(effort: Effort, current_date: datetime.date | None, *, has_tools: bool) -> tuple[int, ...]:
    """Return the system message's token ids: most of a short prompt, and the same for all requests of a day."""
    options = oh.RenderOptions(conversation_has_function_tools=has_tools)
    return tuple(load_encoding().render(_system(effort, current_date), options))


def _developer(conversation: Conversation, num_leading: int) -> Iterator[oh.Message]:
    """Yield the developer message: instructions, tools, response format; none if there is nothing to say."""
    author = oh.Author(role=oh.Role.DEVELOPER)
    instructions = "\n\n".join(m.content for m in conversation.messages[:num_leading] if m.content)
    tools = [_tool(tool, f"tools[{i}].function") for i, tool in enumerate(conversation.tools)]
    response_format = _response_format(conversation.response_format) if conversation.response_format else ""
    if tools:
        content = [*_instructions_and_tools(instructions, tools)]
        content += _texts(f"\n\n{response_format}") if response_format else ()
        yield oh.Message(author=author, content=content)
    elif instructions or response_format:
        sections = (f"# Instructions\n\n{instructions}" if instructions else "", response_format)
        yield _message(author, "\n\n".join(filter(None, sections)))


def _instructions_and_tools(instructions: str, tools: Sequence[oh.ToolDescription]) -> Iterator[oh.Content]:
    if has_long_run(instructions):
        # The renderer would encode both as one text. Between a line feed and "#" no token spans.
        yield from _texts(f"# Instructions\n\n{instructions}\n\n")
        instructions = ""
    yield oh.DeveloperContent(instructions=_clean(instructions) or None).with_function_tools(tools)


def _late_instructions(message: Message) -> Iterator[oh.Message]:
    if message.content:
        author = oh.Author(role=oh.Role.DEVELOPER)
        yield _message(author, f"# Instructions\n\n{message.content}")


def _assistant(message: Message, field: str, *, keep_reasoning: bool) -> Iterator[oh.Message]:
    author = oh.Author(role=oh.Role.ASSISTANT, name=message.name)
    if message.reasoning and keep_reasoning:
        yield _message(author, message.reasoning).with_channel("analysis")
    if not message.tool_calls:
        yield _message(author, message.content).with_channel("commentary" if message.is_preamble else "final")
        return
    if message.content:
        yield _message(author, message.content).with_channel("commentary")
    for index, call in enumerate(message.tool_calls):
        yield _call(author, call, f"{field}.tool_calls[{index}].function.name")


def _call(author: oh.Author, call: ToolCall, field: str) -> oh.Message:
    _check_name(call.name, field, _CALLED_NAME)
    message = _message(author, call.arguments).with_recipient(f"functions.{call.name}")
    return message.with_channel("commentary").with_content_type(_TEXT_TYPE if call.is_text else _JSON_TYPE)


def _tool_result(message: Message, field: str, called: Mapping[str, str]) -> oh.Message:
    name = called.get(message.tool_call_id or "", message.name)
    if name is None:
        raise InvalidConversation(
            f"{field}.tool_call_id", "does not match the id of a tool call in an earlier assistant message"
        )
    author = oh.Author(role=oh.Role.TOOL, name=f"functions.{name}")
    return _message(author, message.content).with_recipient("assistant").with_channel("commentary")


def _tool(tool: Tool, field: str) -> oh.ToolDescription:
    _check_name(tool.name, f"{field}.name", _NAME)
    if has_long_run(tool.description):
        raise InvalidConversation(f"{field}.description", "holds a run of too many characters without a break")
    parameters = None if tool.parameters is None else _schema(tool.parameters, f"{field}.parameters")
    return oh.ToolDescription(name=tool.name, description=_clean(tool.description), parameters=parameters)


def _schema(schema: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return `schema` as plain JSON data without lone surrogates."""
    try:
        text = json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidConversation(
            field, "is not a JSON schema: it holds what JSON can't, or nests too deeply"
        ) from None
    clean: dict[str, Any] = json.loads(_clean(text))
    # In the renderer's text as in JSON; but there, characters that JSON escapes (line feeds, say) stand as they are.
    if has_long_run(text) or any(map(has_long_run, _strings(clean))):
        raise InvalidConversation(field, "holds a run of too many characters without a break")
    return clean


def _strings(data: Any) -> Iterator[str]:
    """Yield every string in plain JSON data, keys among them."""
    left = [data]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += (*item, *item.values())
        elif isinstance(item, list):
            left += item


def _response_format(response_format: ResponseFormat) -> str:
    """Return the section in the form of harmony's format guide, "Structured output"."""
    _check_name(response_format.name, "response_format.json_schema.name", _NAME)
    schema = _schema(response_format.schema, "response_format.json_schema.schema")
    comment = "".join(f"// {line}\n" for line in response_format.description.splitlines())
    schema_text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return f"# Response Formats\n\n## {response_format.name}\n\n{comment}{schema_text}"


def _validate(message: Message, field: str) -> None:
    if message.name is not None:
        pattern = _CALLED_NAME if message.role is Role.TOOL else _NAME
        _check_name(message.name, f"{field}.name", pattern)
    if message.role is not Role.ASSISTANT and message.tool_calls:
        raise InvalidConversation(f"{field}.tool_calls", f"belongs to the assistant, not to {message.role.value}")
    if message.role is not Role.TOOL and message.tool_call_id is not None:
        raise InvalidConversation(f"{field}.tool_call_id", f"belongs to a tool's result, not to {message.role.value}")


def _check_name(name: str, field: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(name):
        raise InvalidConversation(field, "must be 1 to 64 characters of a-z, A-Z, 0-9, underscore and dash")


def _message(author: oh.Author, content: str | oh.Content) -> oh.Message:
    parts = list(_texts(content)) if isinstance(content, str) else [content]
    return oh.Message(author=author, content=parts)


def _texts(text: str) -> Iterator[oh.TextContent]:
    for part in split_long_runs(_clean(text)):
        yield oh.TextContent(text=part)


def _clean(text: str) -> str:
    """Return `text` with lone surrogates (half an emoji, cut by a client) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _unreadable_schema(tools: Sequence[Tool]) -> InvalidConversation:
    """Find the tool whose schema the renderer can't read: nested too deeply, or a number beyond 64 bits."""
    for index, tool in enumerate(tools):
        field = f"tools[{index}].function"
        content = oh.DeveloperContent().with_function_tools([_tool(tool, field)])
        try:
            load_encoding().render(_message(oh.Author(role=oh.Role.DEVELOPER), content))
        except _RENDERER_ERRORS:
            break
    else:
        field = "messages"
    return InvalidConversation(f"{field}.parameters", "nests too deeply, or holds a number that is out of range")
