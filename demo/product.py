"""Samples in the product's own terms: its Conversation, and the body of a chat request."""

import json
from typing import Any

from chorus_cluster.harmony import conversation as product
from demo.sample import Message, Sample

RESPONSE_FORMAT_NAME = "answer"


def to_conversation(sample: Sample) -> product.Conversation:
    response_format = product.ResponseFormat(RESPONSE_FORMAT_NAME, sample.schema) if sample.schema is not None else None
    return product.Conversation(
        messages=tuple(_message(message, i) for i, message in enumerate(sample.messages)),
        tools=tuple(product.Tool(tool.name, tool.description, tool.parameters) for tool in sample.tools),
        effort=product.Effort(sample.effort),
        current_date=sample.date,
        response_format=response_format,
    )


def _message(message: Message, index: int) -> product.Message:
    if message.role == "tool":
        return product.Message(product.Role.TOOL, message.content, tool_call_id=f"call_{index - 1}")
    calls: tuple[product.ToolCall, ...] = ()
    if message.tool_call is not None:
        calls = (product.ToolCall(f"call_{index}", message.tool_call.name, message.tool_call.arguments),)
    return product.Message(
        product.Role(message.role), message.content, reasoning=message.reasoning or None, tool_calls=calls
    )


def to_request(sample: Sample, model: str) -> dict[str, Any]:
    """The JSON body of POST /v1/chat/completions for `sample`, at temperature 0."""
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "reasoning_effort": sample.effort,
        "max_completion_tokens": 320,
    }
    body["messages"] = [_as_json(message, i) for i, message in enumerate(sample.messages)]
    if sample.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description}
                | ({"parameters": t.parameters} if t.parameters else {}),
            }
            for t in sample.tools
        ]
    if sample.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": RESPONSE_FORMAT_NAME, "schema": sample.schema},
        }
    return body


def _as_json(message: Message, index: int) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "content": message.content, "tool_call_id": f"call_{index - 1}"}
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        made["reasoning"] = message.reasoning
    if message.tool_call is not None:
        function = {"name": message.tool_call.name, "arguments": message.tool_call.arguments}
        made |= {"content": None, "tool_calls": [{"id": f"call_{index}", "type": "function", "function": function}]}
    return made


def is_right_call(sample: Sample, name: str, arguments: str) -> bool:
    """Whether a call names the right tool with exactly the right arguments."""
    wanted = sample.target.tool_call
    if wanted is None or name != wanted.name:
        return False
    try:
        return bool(json.loads(arguments) == json.loads(wanted.arguments))
    except json.JSONDecodeError:
        return False
