"""POST /v1/responses, whole and streamed, as raw JSON."""

import json
from typing import Any

import httpx
import pytest
from tests.support.chat import TOOL_CALL, encode
from tests.support.grammars import EDITS, SOME_EDITS
from tests.support.responses import WEATHER, create, kinds, parse_response, prompt, sse

from chorus_cluster.errors import InvalidRequest, Overloaded, RequestFailed
from chorus_cluster.harmony.marked_text import decode_marked
from chorus_cluster.routing.fake_client import FakeEngineClient

REASONING = ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"]
MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
PART_ENDS = ["content_part.done", "output_item.done"]


async def test_whole_response(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    answer = await create(http, metadata={"key": "value"}, temperature=0.5, instructions="Be brief.")
    assert answer.status_code == 200
    response = parse_response(answer.json())
    assert response.id.startswith("resp_")
    assert response.status == "completed" and response.completed_at is not None and response.error is None
    reasoning, message = response.output
    assert reasoning.type == "reasoning" and reasoning.content is not None and reasoning.summary == []
    assert [part.text for part in reasoning.content] == ["The user greets."]
    assert message.type == "message" and message.status == "completed"
    assert response.output_text == "Hello there, friend."
    assert response.metadata == {"key": "value"} and response.temperature == 0.5
    assert response.instructions == "Be brief." and response.parallel_tool_calls and response.tool_choice == "auto"
    assert response.usage is not None
    num_prompt, num_answer = len(engine.requests[0].prompt_token_ids), len(engine.script)  # type: ignore[arg-type]
    assert response.usage.input_tokens == num_prompt and response.usage.output_tokens == num_answer
    assert response.usage.total_tokens == num_prompt + num_answer
    assert response.usage.output_tokens_details.reasoning_tokens == len(encode("The user greets."))
    assert prompt(engine) == (
        "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>"
        "<|start|>user<|message|>Hi<|end|><|start|>assistant"
    )


async def test_streamed_response(http: httpx.AsyncClient) -> None:
    answer = await create(http, stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = sse(answer.text)
    assert kinds(events) == [
        *("created", "in_progress"),
        *(*REASONING, *PART_ENDS, *MESSAGE, *PART_ENDS),
        "completed",
    ]
    assert events[0]["sequence_number"] == 0
    response = parse_response(events[-1]["response"])
    for kind, expected in (("reasoning_text", "The user greets."), ("output_text", "Hello there, friend.")):
        deltas = [event["delta"] for event in events if event["type"] == f"response.{kind}.delta"]
        assert "".join(deltas) == expected and len(deltas) > 1
        (done,) = [event for event in events if event["type"] == f"response.{kind}.done"]
        assert done["text"] == expected
    done_items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done_items == events[-1]["response"]["output"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1]
    assert {event["response"]["id"] for event in events if "response" in event} == {response.id}
    ids = [item["id"] for item in done_items]
    assert {event["item_id"] for event in events if "item_id" in event} == set(ids)


async def test_a_stream_ends_as_the_whole_would(http: httpx.AsyncClient) -> None:
    whole = (await create(http)).json()
    streamed = sse((await create(http, stream=True)).text)[-1]["response"]
    different = {"id", "created_at", "completed_at", "output"}
    assert {k: v for k, v in whole.items() if k not in different} == {
        k: v for k, v in streamed.items() if k not in different
    }
    assert [item | {"id": ""} for item in whole["output"]] == [item | {"id": ""} for item in streamed["output"]]


async def test_function_call(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    events = sse((await create(http, tools=[WEATHER], stream=True)).text)
    assert kinds(events) == ["created", "in_progress", *REASONING, *PART_ENDS, *CALL, "completed"]
    call = parse_response(events[-1]["response"]).output[1]
    assert call.type == "function_call" and call.name == "get_weather" and call.status == "completed"
    assert call.arguments == '{"city": "Paris"}' and call.call_id.startswith("call_")
    assert "type get_weather = (_: {" in prompt(engine)


async def test_a_tool_loop_goes_on_from_its_reasoning(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    first = (await create(http, tools=[WEATHER])).json()
    reasoning, call = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Rain."}
    # Sent back by the client, and found in the store: the model is told the same.
    question = {"role": "user", "content": "Hi"}
    await create(http, tools=[WEATHER], store=False, input=[question, reasoning, call, result])
    await create(http, tools=[WEATHER], previous_response_id=first["id"], input=[result])
    assert prompt(engine, 1) == prompt(engine, 2)
    assert prompt(engine).endswith(
        "<|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>Need weather.<|end|>"
        '<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"city": "Paris"}'
        "<|call|><|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>Rain.<|end|>"
        "<|start|>assistant"
    )


async def test_sealed_reasoning_is_read_back(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    first = (await create(http, tools=[WEATHER], include=["reasoning.encrypted_content"], store=False)).json()
    reasoning, call = first["output"]
    result = {
        "type": "function_call_output",
        "call_id": call["call_id"],
        "output": [{"type": "input_text", "text": "Rain."}],
    }
    # As clients send it that keep only what is sealed.
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": reasoning["encrypted_content"]}
    await create(http, tools=[WEATHER], store=False, input=[{"role": "user", "content": "Hi"}, sealed, call, result])
    assert "<|channel|>analysis<|message|>Need weather.<|end|>" in prompt(engine)
    changed = sealed | {"encrypted_content": reasoning["encrypted_content"][:-8]}
    answer = await create(http, input=[changed])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[0].encrypted_content"
    assert "encrypted_content" not in (await create(http)).json()["output"][0]


async def test_custom_tools_take_free_text(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    patch = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": {"type": "text"}}
    engine.script = encode(
        "<|channel|>commentary to=functions.apply_patch <|constrain|>json<|message|>"
        r'{"input": "*** Begin Patch\n\"x\""}<|call|>'
    )
    events = sse((await create(http, tools=[patch], stream=True)).text)
    ends = ["custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done", "completed"]
    assert kinds(events) == ["created", "in_progress", "output_item.added", *ends]
    call = parse_response(events[-1]["response"]).output[0]
    assert call.type == "custom_tool_call" and call.input == '*** Begin Patch\n"x"'
    assert "// Edits files.\ntype apply_patch = (_: {\ninput: string,\n}) => any;" in prompt(engine)
    result = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Done."}
    await create(http, tools=[patch], previous_response_id=events[-1]["response"]["id"], input=[result])
    assert r'{"input": "*** Begin Patch\n\"x\""}<|call|>' in prompt(engine)
    assert "<|start|>functions.apply_patch to=assistant<|channel|>commentary<|message|>Done." in prompt(engine)


async def test_calls_of_custom_tools_with_a_grammar_are_text(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": EDITS}
    edit = {"type": "custom", "name": "edit", "description": "Edits files.", "format": form}
    # Whatever the header says that the text is.
    for content_type in (" code", "", " <|constrain|>json"):
        header = f"<|channel|>commentary to=functions.edit{content_type}<|message|>"
        engine.script = encode(f"{header}{SOME_EDITS}<|call|>")
        events = sse((await create(http, tools=[edit], stream=True)).text)
        ends = ["custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done", "completed"]
        assert kinds(events) == ["created", "in_progress", "output_item.added", *ends]
        deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
        assert len(deltas) > 5 and "".join(deltas) == SOME_EDITS
        call = parse_response(events[-1]["response"]).output[0]
        assert call.type == "custom_tool_call" and call.input == SOME_EDITS
    assert "\nstart: open edit+ close\n" in prompt(engine).replace("// ", "")
    assert "type edit = (_: string) => any;" in prompt(engine)
    assert [grammar.lark for grammar in engine.requests[-1].guide.grammars] == [EDITS]
    # Kept or sent back, it is told as it was said.
    result = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Done."}
    said = f"<|start|>assistant to=functions.edit<|channel|>commentary code<|message|>{SOME_EDITS}<|call|>"
    await create(http, tools=[edit], previous_response_id=events[-1]["response"]["id"], input=[result])
    assert said in prompt(engine)
    sent = {"type": "custom_tool_call", "call_id": call.call_id, "name": "edit", "input": SOME_EDITS}
    await create(http, tools=[edit], input=[{"role": "user", "content": "Hi"}, sent, result])
    assert said in prompt(engine)


async def test_a_grammar_that_can_not_be_used_is_told_by_its_field(
    http: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: nothing"}
    edit = {"type": "custom", "name": "edit", "format": form}
    tools = [WEATHER, {"type": "namespace", "name": "files", "tools": [edit]}]
    await create(http, tools=tools)
    messages = engine.requests[-1].guide.messages
    index = next(i for i, message in enumerate(messages) if message.HasField("grammar"))
    engine.refusal = InvalidRequest(f"guide.messages[{index}].grammar", "unknown name")
    error = (await create(http, tools=tools)).json()["error"]
    assert error["param"] == "tools[1].tools[0].format.definition"
    assert error["message"].endswith("can't be enforced: unknown name")


PREAMBLE = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"


async def test_what_is_said_before_calls_is_commentary(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(PREAMBLE + TOOL_CALL)
    events = sse((await create(http, tools=[WEATHER], stream=True)).text)
    response = parse_response(events[-1]["response"])
    said, reasoning, call = response.output
    assert said.type == "message" and said.phase == "commentary" and said.content[0].text == "I look it up."  # type: ignore[union-attr]
    assert reasoning.type == "reasoning" and call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    await create(http, tools=[WEATHER], previous_response_id=response.id, input=[result])
    kept = prompt(engine)
    told = "<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>analysis"
    assert told in kept
    sent = [{"role": "user", "content": "Hi"}, *events[-1]["response"]["output"], result]
    await create(http, tools=[WEATHER], input=sent)
    assert prompt(engine) == kept


async def test_what_is_said_before_an_answer_is_an_item_of_its_own(
    http: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    engine.script = encode(f"{PREAMBLE}<|channel|>final<|message|>It rains.<|return|>")
    events = sse((await create(http, tools=[WEATHER], stream=True)).text)
    output = events[-1]["response"]["output"]
    assert [(item["phase"], item["content"][0]["text"]) for item in output] == [
        ("commentary", "I look it up."),
        ("final_answer", "It rains."),
    ]
    assert "\n\n" not in [event.get("delta") for event in events]
    told = (
        "<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It rains.<|end|>"
    )
    again = {"role": "user", "content": "Sure?"}
    await create(http, tools=[WEATHER], previous_response_id=events[-1]["response"]["id"], input=[again])
    assert told in prompt(engine)
    # In a chat completion there is one text.
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == "I look it up.\n\nIt rains."


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([("commentary", "Wait.")], "<|channel|>commentary<|message|>Wait.<|end|>"),
        ([("final_answer", "Yes.")], "<|channel|>final<|message|>Yes.<|end|>"),
        ([(None, "Yes.")], "<|channel|>final<|message|>Yes.<|end|>"),
        (
            [("commentary", "Wait."), "call"],
            "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant to=functions.f",
        ),
        ([(None, "Wait."), "call"], "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant to=functions.f"),
        ([("final_answer", "Yes."), "call"], "<|channel|>final<|message|>Yes.<|end|><|start|>assistant to=functions.f"),
    ],
)
async def test_phases_that_are_sent(
    http: httpx.AsyncClient, engine: FakeEngineClient, items: list[Any], told: str
) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    sent = [call if item == "call" else {"role": "assistant", "phase": item[0], "content": item[1]} for item in items]
    # Users have none.
    answer = await create(http, input=[{"role": "user", "phase": "commentary", "content": "Hi"}, *sent])
    assert answer.status_code == 200, answer.text
    assert f"<|start|>user<|message|>Hi<|end|><|start|>assistant{told}" in prompt(engine)
    page = (await http.get(f"/v1/responses/{answer.json()['id']}/input_items", params={"order": "asc"})).json()["data"]
    assert [item.get("phase") for item in page] == [None, *(item.get("phase") for item in sent)]


async def test_namespaces(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    namespace = {"type": "namespace", "name": "mcp__maps", "description": "Maps.", "tools": [WEATHER]}
    engine.script = encode(TOOL_CALL.replace("functions.get_weather", "functions.mcp__maps__get_weather"))
    response = parse_response((await create(http, tools=[namespace])).json())
    call = response.output[1]
    assert call.type == "function_call" and (call.namespace, call.name) == ("mcp__maps", "get_weather")
    assert "type mcp__maps__get_weather = " in prompt(engine)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    await create(http, tools=[namespace], previous_response_id=response.id, input=[result])
    assert "<|start|>functions.mcp__maps__get_weather to=assistant" in prompt(engine)


async def test_logprobs(http: httpx.AsyncClient) -> None:
    include = ["message.output_text.logprobs"]
    events = sse((await create(http, include=include, top_logprobs=2, stream=True)).text)
    message = parse_response(events[-1]["response"]).output[1]
    assert message.type == "message" and message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs
    assert logprobs is not None
    assert "".join(entry.token for entry in logprobs) == "Hello there, friend."
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)
    streamed = [entry for e in events if e["type"] == "response.output_text.delta" for entry in e["logprobs"]]
    assert [entry["token"] for entry in streamed] == [entry.token for entry in logprobs]
    assert (await create(http, include=include)).json()["output"][1]["content"][0]["logprobs"][0]["top_logprobs"] == []
    assert (await create(http, top_logprobs=2)).status_code == 400


async def test_a_limit_makes_it_incomplete(http: httpx.AsyncClient) -> None:
    events = sse((await create(http, stream=True, max_output_tokens=9)).text)
    assert kinds(events)[-1] == "incomplete"
    response = parse_response(events[-1]["response"])
    assert response.status == "incomplete" and response.completed_at is None
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].status == "incomplete"  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_comes_before_the_response(
    http: httpx.AsyncClient, engine: FakeEngineClient, stream: bool
) -> None:
    await create(http)
    engine.refusal = Overloaded(3.0)
    answer = await create(http, stream=stream)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


async def test_a_failure_ends_the_stream(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.failure = (9, RequestFailed())
    events = sse((await create(http, stream=True)).text)
    assert kinds(events)[-3:] == ["content_part.done", "output_item.done", "failed"]
    response = parse_response(events[-1]["response"])
    assert response.status == "failed" and response.error is not None and response.error.code == "server_error"
    assert response.output and response.usage is None
    assert (await http.get(f"/v1/responses/{response.id}")).status_code == 404
    assert (await create(http)).status_code == 500


async def test_unknown_errors_are_not_shown(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.failure = (9, ZeroDivisionError("secret"))  # type: ignore[assignment]
    answer = await create(http, stream=True)
    assert kinds(sse(answer.text))[-1] == "failed"
    assert "secret" not in answer.text


BAD_BODIES: list[tuple[dict[str, Any], str | None]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
    ({"input": [{"type": "item_reference"}]}, "input[0].id"),
    ({"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": f"msg_{'0' * 52}"}]}, "input[1].id"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
    (
        {
            "input": [
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "b", "name": "no name", "arguments": "{}"},
            ]
        },
        "input[2].name",
    ),
    ({"input": [{"role": "user", "content": "x"}] * 4097}, "input"),
    ({"input": "x" * 100_000}, "input"),
    ({"instructions": 5}, "instructions"),
    ({"max_output_tokens": 4096}, "max_output_tokens"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [{"type": "web_search"}, WEATHER | {"name": "a b"}]}, "tools[1].name"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "other"}, "tools": [WEATHER]}, "tool_choice.name"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"x": "y" * 300_000}}}}, "text.format.schema"),
    ({"tools": [WEATHER | {"strict": True, "parameters": {"x": "y " * 150_000}}]}, "tools[0].parameters"),
    ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ({"service_tier": "first"}, "service_tier"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "xhigh"}}, "reasoning.effort"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"include": ["everything"]}, "include[0]"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ({"metadata": {"k": 5}}, "metadata.k"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"n": 2}, "n"),
    ({"truncation": "middle"}, "truncation"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"stream_options": {}}, "stream_options"),
    ({"background": True, "store": False}, "background"),
    ({"messages": []}, "messages"),
    ({"model": "other"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_BODIES)
async def test_what_is_wrong_is_named(http: httpx.AsyncClient, fields: dict[str, Any], param: str | None) -> None:
    answer = await create(http, **fields)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param


async def test_what_the_model_is_held_to(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    """As the engine is told; that it keeps to it is tested where it does."""

    async def grammars(**fields: Any) -> list[str]:
        answer = await create(http, **fields)
        assert answer.status_code == 200, answer.text
        parse_response(answer.json())
        guide = engine.requests[-1].guide
        headers = [decode_marked(message.header) for message in guide.messages]
        return [*(grammar.json_schema for grammar in guide.grammars), *headers]

    assert any("final" in text for text in await grammars(tools=[WEATHER]))
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        assert not any("final" in text for text in await grammars(tools=[WEATHER], tool_choice=choice))
    patch = {"type": "custom", "name": "apply_patch"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [patch]}
    told = await grammars(tools=[WEATHER, patch], tool_choice=allowed)
    assert not any("get_weather" in text for text in told) and any("apply_patch" in text for text in told)
    assert "get_weather" in prompt(engine)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"format": {"type": "json_schema", "name": "numbers", "schema": schema, "strict": True}}
    assert json.loads((await grammars(text=text))[0]) == schema
    assert "## numbers" in prompt(engine)
    assert json.loads((await grammars(text={"format": {"type": "json_object"}}))[0]) == {"type": "object"}
    assert json.loads((await grammars(tools=[WEATHER | {"strict": True}]))[0]) == WEATHER["parameters"]
    await grammars(thinking_token_budget=7, service_tier="flex")
    assert engine.requests[-1].guide.max_reasoning_tokens == 7 and engine.requests[-1].priority > 0


async def test_a_deadline_that_is_none(http: httpx.AsyncClient) -> None:
    body = {"model": "fake-model", "input": "Hi"}
    answer = await http.post("/v1/responses", json=body, headers={"x-request-timeout-s": "soon"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout-s")


async def test_null_is_absent(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    item = {"type": None, "id": None, "role": "user", "content": "Hi", "status": None}
    await create(http)
    answer = await create(http, input=[item], instructions=None, tools=None, store=None, background=None, include=None)
    assert answer.status_code == 200
    assert prompt(engine, 0) == prompt(engine, 1)


async def test_tools_that_run_elsewhere_are_left_out(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    answer = await create(http, tools=[{"type": "web_search"}, {"type": "image_generation"}, WEATHER])
    assert [tool["name"] for tool in answer.json()["tools"]] == ["get_weather"]
    assert "web_search" not in prompt(engine)
