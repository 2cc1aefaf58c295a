"""ResponsesService over gRPC, beside /v1/responses: the same requests are asked through both."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.chat import TOOL_CALL, encode
from tests.support.grpc_responses import as_json, event_type, stripped
from tests.support.responses import WEATHER, create, sse
from tests.unit.gateway.responses.test_writer import NAMES, PATCH, TURNS, Turn, model_events

from chorus_cluster.errors import RequestFailed
from chorus_cluster.gateway.grpc.responses.models import event_to_pb
from chorus_cluster.gateway.responses.models import ResponsesBody
from chorus_cluster.gateway.responses.tools import read_tools
from chorus_cluster.gateway.responses.writer import ResponseWriter, read_event, split_events
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2
from chorus_protos.v1 import responses_pb2 as pb

Stub = "responses_pb2_grpc.ResponsesServiceAsyncStub"
FUNCTION = chat_pb2.FunctionTool(
    name="get_weather", description="Weather of a city.", parameters_json=json.dumps(WEATHER["parameters"])
)
STRICT = chat_pb2.FunctionTool(
    name="get_weather", description="Weather of a city.", parameters_json=FUNCTION.parameters_json, strict=True
)
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /[a-z]+/"}
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": GRAMMAR}
CUSTOM_PB = pb.CustomTool(
    name="apply_patch",
    description="Edits files.",
    grammar=pb.InputGrammar(syntax="lark", definition="start: /[a-z]+/"),
)
MAPS = {"type": "namespace", "name": "maps", "description": "Maps.", "tools": [WEATHER]}
TOOLS = [WEATHER, CUSTOM, MAPS]
TOOLS_PB = [
    pb.ResponseTool(function=FUNCTION),
    pb.ResponseTool(custom=CUSTOM_PB),
    pb.ResponseTool(
        namespace=pb.ToolNamespace(name="maps", description="Maps.", tools=[pb.ResponseTool(function=FUNCTION)])
    ),
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALLED = "<|channel|>commentary to=functions.apply_patch code<|message|>begin and end the patch<|call|>"


def said(text: str, role: "chat_pb2.Role.ValueType" = chat_pb2.ROLE_USER) -> pb.ResponseItem:
    return pb.ResponseItem(message=pb.MessageItem(role=role, content=[pb.ContentPart(input_text=text)]))


def ask(*items: pb.ResponseItem, **fields: Any) -> pb.CreateResponseRequest:
    return pb.CreateResponseRequest(**{"model": "fake-model", "input": items or [said("Hi")]} | fields)


def named(kind: str, name: str, namespace: str = "") -> pb.ToolName:
    return pb.ToolName(**{kind: name}, namespace=namespace)  # type: ignore[arg-type]


HELD = [
    {"role": "system", "content": "Be kind."},
    {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"role": "user", "content": "Hi", "id": "msg_mine"},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "namespace": "maps", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
    {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "Done."},
    {"role": "assistant", "phase": "commentary", "content": [{"type": "output_text", "text": "Wait."}]},
    {"role": "assistant", "phase": "final_answer", "content": [{"type": "output_text", "text": "So."}]},
    {"role": "user", "content": "And?"},
]
HELD_PB = [
    said("Be kind.", chat_pb2.ROLE_SYSTEM),
    said("Be brief.", chat_pb2.ROLE_DEVELOPER),
    pb.ResponseItem(id="msg_mine", message=said("Hi").message),
    pb.ResponseItem(reasoning=pb.ReasoningItem(content=[pb.ContentPart(reasoning_text="Hm.")])),
    pb.ResponseItem(
        function_call=pb.FunctionCallItem(call_id="c1", name="get_weather", namespace="maps", arguments="{}")
    ),
    pb.ResponseItem(function_call_output=pb.FunctionCallOutputItem(call_id="c1", output="Rain.")),
    pb.ResponseItem(custom_tool_call=pb.CustomToolCallItem(call_id="c2", name="apply_patch", input="x")),
    pb.ResponseItem(custom_tool_call_output=pb.CustomToolCallOutputItem(call_id="c2", output="Done.")),
    *(
        pb.ResponseItem(
            message=pb.MessageItem(
                role=chat_pb2.ROLE_ASSISTANT,
                content=[pb.ContentPart(output_text=pb.OutputText(text=text))],
                phase=phase,
            )
        )
        for text, phase in [("Wait.", pb.MESSAGE_PHASE_COMMENTARY), ("So.", pb.MESSAGE_PHASE_FINAL_ANSWER)]
    ),
    said("And?"),
]
SAMPLING: dict[str, Any] = {
    **{"temperature": 0.1, "top_p": 0.3, "top_k": 4, "min_p": 0.5, "frequency_penalty": 1.5, "presence_penalty": -1.5},
    **{"repetition_penalty": 1.1, "seed": -5, "stop": ["世", "x"], "priority": -7, "max_output_tokens": 30},
}
# What is asked through HTTP and through gRPC.
SAME: list[tuple[dict[str, Any], pb.CreateResponseRequest]] = [
    ({}, ask()),
    ({"input": HELD, "tools": TOOLS}, ask(*HELD_PB, tools=TOOLS_PB)),
    (SAMPLING | {"logit_bias": {"7": 1.5}}, ask(logit_bias={7: 1.5}, **SAMPLING)),
    ({"instructions": "", "metadata": {"k": "v"}, "user": "u"}, ask(instructions="", metadata={"k": "v"}, user="u")),
    (
        {"parallel_tool_calls": False, "max_tool_calls": 3, "prompt_cache_key": "p", "safety_identifier": "s"},
        ask(parallel_tool_calls=False, max_tool_calls=3, prompt_cache_key="p", safety_identifier="s"),
    ),
    (
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "store": False},
        ask(top_logprobs=2, store=False),
    ),
    (
        {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "high"}, "thinking_token_budget": 9},
        ask(
            include_encrypted_reasoning=True,
            reasoning_effort=chat_pb2.REASONING_EFFORT_HIGH,
            max_reasoning_tokens=9,
        ),
    ),
    (
        {"truncation": "auto", "service_tier": "flex", "instructions": "Be brief."},
        ask(truncation=pb.TRUNCATION_AUTO, service_tier=pb.SERVICE_TIER_FLEX, instructions="Be brief."),
    ),
    (
        {
            "text": {
                "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "description": "d", "strict": True}
            }
        },
        ask(
            text_format=pb.TextFormat(
                json_schema=pb.JsonSchemaTextFormat(
                    name="n", schema_json=json.dumps(SCHEMA), description="d", strict=True
                )
            )
        ),
    ),
    ({"text": {"format": {"type": "json_object"}}}, ask(text_format=pb.TextFormat(json_object=True))),
    ({"tools": [WEATHER | {"strict": True}]}, ask(tools=[pb.ResponseTool(function=STRICT)])),
    *(
        ({"tools": TOOLS, "tool_choice": choice}, ask(tools=TOOLS_PB, tool_choice=choice_pb))
        for choice, choice_pb in [
            ("none", pb.ResponseToolChoice(mode=chat_pb2.TOOL_CHOICE_NONE)),
            ("required", pb.ResponseToolChoice(mode=chat_pb2.TOOL_CHOICE_REQUIRED)),
            ({"type": "custom", "name": "apply_patch"}, pb.ResponseToolChoice(tool=named("custom", "apply_patch"))),
            (
                {"type": "function", "name": "get_weather", "namespace": "maps"},
                pb.ResponseToolChoice(tool=named("function", "get_weather", "maps")),
            ),
            (
                {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [
                        {"type": "function", "name": "get_weather"},
                        {"type": "custom", "name": "apply_patch"},
                    ],
                },
                pb.ResponseToolChoice(
                    allowed_tools=pb.AllowedTools(
                        mode=chat_pb2.TOOL_CHOICE_REQUIRED,
                        tools=[named("function", "get_weather"), named("custom", "apply_patch")],
                    )
                ),
            ),
        ]
    ),
]


# Fields of the body that gRPC doesn't have: what has one value or none, what changes nothing and isn't given back, and
# what is a choice of the method.
HTTP_ALONE = {
    *("conversation", "prompt", "context_management", "moderation", "n", "stream", "stream_options"),
    *("background_options", "client_metadata", "prompt_cache_options", "prompt_cache_retention"),
}
# Asked for in tests of the store.
KEPT = {"background", "previous_response_id"}


def test_every_field_of_either_form_is_among_these() -> None:
    in_http = {name for fields, _ in SAME for name in fields} | {"model", "input"} | KEPT
    assert in_http == set(ResponsesBody.model_fields) - HTTP_ALONE
    in_grpc = {field.name for _, request in SAME for field, _ in request.ListFields()} | KEPT
    assert in_grpc == {field.name for field in pb.CreateResponseRequest.DESCRIPTOR.fields}


def without_names(value: Any) -> Any:
    """Without what two responses never have in common."""
    if isinstance(value, list):
        return [without_names(element) for element in value]
    if not isinstance(value, dict):
        return value
    never = ("id", "item_id", "created_at", "completed_at")
    return {key: without_names(item) for key, item in value.items() if key not in never}


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much a delta holds depends on how fast the client reads."""
    found: list[dict[str, Any]] = []
    for event in events:
        del event["sequence_number"]
        last = found[-1] if found else {}
        if "delta" in event and event["type"] == last.get("type"):
            last["delta"] += event["delta"]
            last["logprobs"] = last.get("logprobs", []) + event.get("logprobs", [])
        else:
            found.append(event)
    return stripped(found)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("fields", "request_"), SAME)
async def test_both_ask_and_answer_the_same(
    stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient, fields: dict[str, Any], request_: Any
) -> None:
    fields = {"seed": 1} | fields
    if not request_.HasField("seed"):
        request_.seed = 1
    whole = await stub.CreateResponse(request_)
    answer = await create(http, **fields)
    assert answer.status_code == 200, answer.text
    events = [event async for event in stub.StreamResponse(request_)]
    answered = map(read_event, split_events((await create(http, **fields, stream=True)).text))
    assert without_names(as_json(whole)) == without_names(stripped(answer.json()))
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert joined([without_names(as_json(event)) for event in events]) == joined(without_names(stripped([*answered])))
    asked = [request for request in engine.requests if not request.ClearField("request_id")]
    assert len(asked) == 4 and all(request == asked[0] for request in asked)


@pytest.mark.parametrize(("fields", "request_"), SAME)
async def test_what_is_kept_is_read_through_both(
    stub: Stub, http: httpx.AsyncClient, fields: dict[str, Any], request_: pb.CreateResponseRequest
) -> None:
    by_http = (await create(http, **fields)).json()["id"]
    by_grpc = (await stub.CreateResponse(request_)).id
    for id in (by_http, by_grpc):
        found = await http.get(f"/v1/responses/{id}")
        if fields.get("store") is False:
            assert found.status_code == 404
            continue
        assert as_json(await stub.GetResponse(pb.GetResponseRequest(response_id=id))) == stripped(found.json())
        page = (await http.get(f"/v1/responses/{id}/input_items")).json()
        assert as_json(await stub.ListInputItems(pb.ListInputItemsRequest(response_id=id))) == stripped(page)


async def test_what_clients_of_http_may_send_and_nobody_reads(stub: Stub, http: httpx.AsyncClient) -> None:
    """It is given back over HTTP, and does no harm over gRPC."""
    odd_custom = CUSTOM | {"format": GRAMMAR | {"more": 5}, "parameters": {}}
    named_oddly = {"type": "function", "name": "get_weather", "namespace": 5, "more": [1]}
    fields: dict[str, Any] = {
        **{"priority": 1, "service_tier": "flex", "max_tool_calls": 10**30, "tool_choice": named_oddly},
        "tools": [WEATHER | {"defer_loading": True}, odd_custom, {"type": "web_search"}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": "yes", "more": 5}},
    }
    answer = await create(http, **fields)
    assert answer.status_code == 200, answer.text
    found = await stub.GetResponse(pb.GetResponseRequest(response_id=answer.json()["id"]))
    assert found.max_tool_calls == 2**32 - 1 and found.service_tier == pb.SERVICE_TIER_FLEX
    assert found.tool_choice.tool == named("function", "get_weather")
    assert [tool.WhichOneof("tool") for tool in found.tools] == ["function", "custom"]
    assert not found.text_format.json_schema.HasField("strict")


async def test_input_that_is_no_unicode_text(stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    """The model can spell half a character in JSON."""
    engine.script = encode(
        "<|channel|>commentary to=functions.note <|constrain|>json<|message|>"
        r'{"input": "\ud800 \ud83d\ude00 Patch"}<|call|>'
    )
    note = pb.ResponseTool(custom=pb.CustomTool(name="note"))
    whole = await stub.CreateResponse(ask(tools=[note]))
    assert whole.output[0].custom_tool_call.input == "\ufffd \U0001f600 Patch"
    body = (await http.get(f"/v1/responses/{whole.id}")).json()
    assert body["output"][0]["input"] == "\ufffd \U0001f600 Patch"
    result = {"type": "custom_tool_call_output", "call_id": body["output"][0]["call_id"], "output": "Done."}
    tools = [{"type": "custom", "name": "note"}]
    assert (await create(http, tools=tools, previous_response_id=whole.id, input=[result])).status_code == 200


async def test_every_event_has_its_place(stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    """Of responses in the background, whose events are read through both."""
    types = set()
    scripts = [(None, {}), (encode(TOOL_CALL), {"tools": TOOLS}), (encode(CALLED), {"tools": TOOLS})]
    scripts += [(None, {"max_output_tokens": 9}), (None, {"input": "fail"})]
    for script, fields in scripts:
        engine.script = script or engine.script
        engine.failure = (9, RequestFailed()) if fields.get("input") else None
        events = sse((await create(http, background=True, stream=True, **fields)).text)
        asked = pb.StreamStoredResponseRequest(response_id=events[0]["response"]["id"])
        assert [as_json(event) async for event in stub.StreamStoredResponse(asked)] == stripped(events)
        types |= {event["type"] for event in events}
    fields_of_event = pb.ResponseEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    assert types == {event_type(field.name) for field in fields_of_event}


@settings(max_examples=100, deadline=None)
@given(TURNS, st.lists(NAMES, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_whatever_the_model_writes_is_said(turns: list[Turn], names: list[str], is_cut: bool, is_sealed: bool) -> None:
    writer = ResponseWriter("resp_" + "0" * 48, read_tools([PATCH]), sealed_reasoning=is_sealed, writes_events=True)
    for text in writer.events(model_events(turns, names)) + writer.close(is_cut=is_cut):
        event = read_event(text)
        assert as_json(event_to_pb(event)) == stripped(event)
