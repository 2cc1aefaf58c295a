"""What ResponsesService refuses, and that /v1/responses refuses it with the same words."""

from typing import Any

import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from tests.support.grpc_responses import refused
from tests.support.responses import create
from tests.unit.gateway.responses.test_grpc_responses import CUSTOM_PB, FUNCTION, ask, named, said

from chorus_protos.v1 import chat_pb2
from chorus_protos.v1 import responses_pb2 as pb

Stub = "responses_pb2_grpc.ResponsesServiceAsyncStub"
NEVER_MADE = "resp_" + "0" * 48


def part(**fields: Any) -> pb.ResponseItem:
    return pb.ResponseItem(message=pb.MessageItem(role=chat_pb2.ROLE_USER, content=[pb.ContentPart(**fields)]))


def function(**fields: Any) -> pb.ResponseTool:
    return pb.ResponseTool(function=chat_pb2.FunctionTool(**{"name": "f"} | fields))


def schema(**fields: Any) -> pb.TextFormat:
    return pb.TextFormat(json_schema=pb.JsonSchemaTextFormat(**{"name": "n", "schema_json": "{}"} | fields))


def choice(**fields: Any) -> pb.ResponseToolChoice:
    return pb.ResponseToolChoice(**fields)


TOOLS = [pb.ResponseTool(function=FUNCTION), pb.ResponseTool(custom=CUSTOM_PB)]
# Requests, the field at fault, and where HTTP can say the same, the body that does.
WRONG: list[tuple[pb.CreateResponseRequest, str, dict[str, Any] | None]] = [
    (pb.CreateResponseRequest(model="fake-model"), "input", {"input": []}),
    (ask(pb.ResponseItem()), "input[0]", None),
    (ask(said("Hi"), pb.ResponseItem(message=pb.MessageItem())), "input[1].role", None),
    (ask(said("Hi", chat_pb2.ROLE_TOOL)), "input[0].role", {"input": [{"role": "tool", "content": "Hi"}]}),
    (ask(part()), "input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": ""}]}]}),
    (ask(part(reasoning_text="x")), "input[0].content[0].type", None),
    (
        ask(pb.ResponseItem(item_reference="x")),
        "input[0].id",
        {"input": [{"type": "item_reference", "id": "x"}]},
    ),
    (
        ask(pb.ResponseItem(function_call_output=pb.FunctionCallOutputItem(call_id="x", output="y"))),
        "input[0].call_id",
        {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
    ),
    (
        ask(pb.ResponseItem(reasoning=pb.ReasoningItem(encrypted_content="x"))),
        "input[0].encrypted_content",
        {"input": [{"type": "reasoning", "encrypted_content": "x"}]},
    ),
    (ask(*[said("x")] * 4097), "input", {"input": [{"role": "user", "content": "x"}] * 4097}),
    (
        ask(pb.ResponseItem(message=pb.MessageItem(role=chat_pb2.ROLE_USER, content=[pb.ContentPart()] * 16385))),
        "input",
        {"input": [{"role": "user", "content": [{}] * 16385}]},
    ),
    (ask(tools=[function()] * 513), "tools", {"tools": [{"type": "function", "name": "f"}] * 513}),
    (ask(tools=[pb.ResponseTool()]), "tools[0]", None),
    (ask(tools=[function(name="")]), "tools[0].name", {"tools": [{"type": "function"}]}),
    (ask(tools=[function(parameters_json="{")]), "tools[0].parameters", None),
    (ask(tools=[function(parameters_json="[]")]), "tools[0].parameters", None),
    (
        ask(tools=[pb.ResponseTool(namespace=pb.ToolNamespace(name="n", tools=[function(parameters_json="{")]))]),
        "tools[0].tools[0].parameters",
        None,
    ),
    (ask(tool_choice=choice(mode=9)), "tool_choice", None),
    (ask(tool_choice=choice(mode=chat_pb2.TOOL_CHOICE_REQUIRED)), "tool_choice", {"tool_choice": "required"}),
    (
        ask(tools=TOOLS, tool_choice=choice(tool=named("function", "other"))),
        "tool_choice.name",
        {"tool_choice": {"type": "function", "name": "other"}},
    ),
    (ask(tools=TOOLS, tool_choice=choice(tool=pb.ToolName())), "tool_choice.name", {"tool_choice": {"type": "custom"}}),
    (
        ask(tools=TOOLS, tool_choice=choice(allowed_tools=pb.AllowedTools(mode=chat_pb2.TOOL_CHOICE_NONE))),
        "tool_choice.mode",
        {"tool_choice": {"type": "allowed_tools", "mode": "none"}},
    ),
    (
        ask(tools=TOOLS, tool_choice=choice(allowed_tools=pb.AllowedTools())),
        "tool_choice.tools",
        {"tool_choice": {"type": "allowed_tools"}},
    ),
    (ask(reasoning_effort=9), "reasoning.effort", {"reasoning": {"effort": "xhigh"}}),
    (ask(text_format=schema(schema_json="")), "text.format.schema", None),
    (ask(text_format=schema(schema_json="5")), "text.format.schema", None),
    (
        ask(text_format=schema(name="a b")),
        "text.format.name",
        {"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
    ),
    (ask(top_logprobs=21), "top_logprobs", {"top_logprobs": 21, "include": ["message.output_text.logprobs"]}),
    (ask(truncation=9), "truncation", {"truncation": "middle"}),
    (ask(service_tier=9), "service_tier", {"service_tier": "first"}),
    (ask(metadata={str(i): "" for i in range(17)}), "metadata", {"metadata": {str(i): "" for i in range(17)}}),
    (ask(temperature=3), "temperature", {"temperature": 3}),
    (ask(temperature=float("nan")), "temperature", None),
    (ask(max_output_tokens=0), "max_output_tokens", {"max_output_tokens": 0}),
    (ask(max_output_tokens=4096), "max_output_tokens", {"max_output_tokens": 4096}),
    (ask(max_reasoning_tokens=2**32 - 1), "thinking_token_budget", {"thinking_token_budget": 2**32 - 1}),
    (ask(max_tool_calls=0), "max_tool_calls", {"max_tool_calls": 0}),
    (ask(background=True, store=False), "background", {"background": True, "store": False}),
    (ask(previous_response_id=NEVER_MADE), "previous_response_id", {"previous_response_id": NEVER_MADE}),
    (ask(model="other"), "model", {"model": "other"}),
]


@pytest.mark.parametrize(("request_", "field", "body"), WRONG)
@pytest.mark.parametrize("method", ["CreateResponse", "StreamResponse"])
async def test_what_is_wrong_is_named(
    stub: Stub,
    http: httpx.AsyncClient,
    request_: pb.CreateResponseRequest,
    field: str,
    body: dict[str, Any] | None,
    method: str,
) -> None:
    code, metadata = await refused(getattr(stub, method)(request_))
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert metadata["error-field"] == field
    status = Status.FromString(metadata["grpc-status-details-bin"])
    violations = [BadRequest.FromString(d.value) for d in status.details if d.TypeName() == "google.rpc.BadRequest"]
    assert violations[0].field_violations[0].field == field
    if body is not None:
        tools = [{"type": "function", "name": "get_weather"}, {"type": "custom", "name": "apply_patch"}]
        told = await create(http, **({"tools": tools} if request_.tools == TOOLS else {}), **body)
        error = told.json()["error"]
        assert (error["message"], error["param"], error["code"]) == (status.message, field, metadata["error-code"])
