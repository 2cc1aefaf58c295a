"""Requests in OpenAI's JSON, said in protobuf."""

import json
from typing import Any

from chorus_protos.v1 import chat_pb2, completion_pb2


def chat_to_pb(body: dict[str, Any]) -> chat_pb2.ChatCompletionRequest:
    pb = chat_pb2.ChatCompletionRequest()
    for name, value in body.items():
        if name == "messages":
            pb.messages.extend(_message(message) for message in value)
        elif name == "tools":
            pb.tools.extend(
                chat_pb2.FunctionTool(
                    name=tool["function"]["name"],
                    description=tool["function"].get("description", ""),
                    parameters_json=json.dumps(tool["function"].get("parameters", {})),
                )
                for tool in value
            )
        elif name == "logit_bias":
            for key, bias in value.items():
                pb.logit_bias[int(key)] = bias
        elif name == "stop":
            pb.stop.extend(value)
        elif name in ("response_format", "structured_outputs"):
            pb.output_format.CopyFrom(_output_format(value))
        elif name != "logprobs":
            setattr(pb, name, value)
    return pb


def _output_format(value: dict[str, Any]) -> chat_pb2.OutputFormat:
    """Of either field."""
    match value:
        case {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}:
            named = chat_pb2.JsonSchemaFormat(name=name, schema_json=json.dumps(schema))
            return chat_pb2.OutputFormat(json_schema=named)
        case {"type": "json_object"} | {"json_object": True}:
            return chat_pb2.OutputFormat(json_object=True)
        case {"json": schema}:
            return chat_pb2.OutputFormat(json_schema=chat_pb2.JsonSchemaFormat(schema_json=json.dumps(schema)))
        case {"choice": texts}:
            return chat_pb2.OutputFormat(choice=chat_pb2.Choices(texts=texts))
        case {"grammar": grammar}:
            return chat_pb2.OutputFormat(lark=grammar)
    return chat_pb2.OutputFormat(**value)


def _message(message: dict[str, Any]) -> chat_pb2.ChatMessage:
    known = {f"ROLE_{message['role'].upper()}"} & set(chat_pb2.Role.keys())
    return chat_pb2.ChatMessage(
        role=chat_pb2.Role.Value(known.pop()) if known else chat_pb2.ROLE_UNSPECIFIED,
        content=message.get("content", ""),
        name=message.get("name", ""),
        tool_call_id=message.get("tool_call_id", ""),
        tool_calls=[
            chat_pb2.ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
            for call in message.get("tool_calls", ())
        ],
    )


def tokenize_to_pb(body: dict[str, Any]) -> chat_pb2.TokenizeRequest:
    if "messages" in body:
        return chat_pb2.TokenizeRequest(model=body.get("model", ""), chat=chat_to_pb(body))
    return chat_pb2.TokenizeRequest(**body)


def completion_to_pb(body: dict[str, Any]) -> completion_pb2.CompletionRequest:
    pb = completion_pb2.CompletionRequest()
    for name, value in body.items():
        if name == "prompt":
            is_one = isinstance(value, str) or (value and isinstance(value[0], int))
            pb.prompts.extend(map(_prompt, [value] if is_one else value))
        elif name == "logit_bias":
            for key, bias in value.items():
                pb.logit_bias[int(key)] = bias
        elif name in ("response_format", "structured_outputs"):
            pb.output_format.CopyFrom(_output_format(value))
        else:
            setattr(pb, name, value)
    return pb


def _prompt(prompt: str | list[int]) -> completion_pb2.Prompt:
    if isinstance(prompt, str):
        return completion_pb2.Prompt(text=prompt)
    return completion_pb2.Prompt(tokens=completion_pb2.TokenIds(token_ids=prompt))
