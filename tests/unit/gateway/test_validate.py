"""The limits of the validator, at their edges."""

import dataclasses

import pytest

from chorus_cluster.errors import ContextTooLong, InvalidRequest
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.validate import MAX_CHARACTERS_PER_TOKEN, MAX_ELEMENTS, max_new_tokens, validate
from chorus_cluster.harmony.conversation import Message, Role, ToolCall
from chorus_protos.v1 import engine_pb2

CONTEXT = 100_000
MODEL = engine_pb2.ModelInfo(model="m", vocab_size=201088, max_model_len=CONTEXT)
REQUEST = ChatRequest(model="m", messages=(Message(Role.USER, "Hi"),))


def test_one_token_is_room_enough() -> None:
    assert max_new_tokens(REQUEST, CONTEXT - 1, CONTEXT) == 1
    with pytest.raises(ContextTooLong, match=r"^messages: take 100000 tokens"):
        max_new_tokens(REQUEST, CONTEXT, CONTEXT)


def test_a_limit_may_fill_the_context_and_not_more() -> None:
    request = dataclasses.replace(REQUEST, max_tokens=30, max_tokens_field="max_tokens")
    assert max_new_tokens(request, CONTEXT - 30, CONTEXT) == 30
    with pytest.raises(ContextTooLong, match=r"^max_tokens: is 30, but 99971 prompt tokens leave room for 29"):
        max_new_tokens(request, CONTEXT - 29, CONTEXT)


@pytest.mark.parametrize("field", ["content", "reasoning"])
def test_characters_of_text_and_of_reasoning_count(field: str) -> None:
    longest = CONTEXT * MAX_CHARACTERS_PER_TOKEN
    fits = Message(Role.ASSISTANT, **({"content": ""} | {field: " " * longest}))
    validate(dataclasses.replace(REQUEST, messages=(fits,)), MODEL)
    with pytest.raises(ContextTooLong, match=f"hold {longest + 2} characters"):
        validate(dataclasses.replace(REQUEST, messages=(fits, *REQUEST.messages)), MODEL)


def test_characters_of_arguments_count() -> None:
    arguments = " " * (CONTEXT * MAX_CHARACTERS_PER_TOKEN - 2)
    calls = Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "f", arguments),))
    validate(dataclasses.replace(REQUEST, messages=(*REQUEST.messages, calls)), MODEL)
    with pytest.raises(ContextTooLong, match=f"hold {len(arguments) + 4} characters"):
        validate(dataclasses.replace(REQUEST, messages=(*REQUEST.messages, calls, *REQUEST.messages)), MODEL)


def test_tool_calls_count_as_messages_do() -> None:
    calls = tuple(ToolCall(f"call_{i}", "f", "{}") for i in range(MAX_ELEMENTS["messages"] - 2))
    messages = (*REQUEST.messages, Message(Role.ASSISTANT, "", tool_calls=calls))
    validate(dataclasses.replace(REQUEST, messages=messages), MODEL)
    with pytest.raises(InvalidRequest, match=r"^messages: holds 4097 elements"):
        validate(dataclasses.replace(REQUEST, messages=(*messages, *REQUEST.messages)), MODEL)


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_seeds_fill_a_signed_64_bit_integer(seed: int) -> None:
    validate(dataclasses.replace(REQUEST, seed=seed), MODEL)
    outside = seed + (1 if seed > 0 else -1)
    with pytest.raises(InvalidRequest, match=r"^seed: "):
        validate(dataclasses.replace(REQUEST, seed=outside), MODEL)
