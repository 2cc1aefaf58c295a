"""The API as clients use it that are not ours: OpenAI's library, and the requests that Codex sends."""

import asyncio
from typing import Any

import httpx
import openai
import pytest
from tests.support.chat import TOOL_CALL, encode
from tests.support.grammars import EDITS, SOME_EDITS
from tests.support.responses import WEATHER, check_known, prompt, sse

from chorus_cluster.errors import Overloaded
from chorus_cluster.routing.fake_client import FakeEngineClient


async def test_openai_create_and_go_on(client: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    first = await client.responses.create(model="fake-model", input="Hi", instructions="Be brief.")
    check_known(first)
    assert first.output_text == "Hello there, friend."
    second = await client.responses.create(model="fake-model", input="And?", previous_response_id=first.id)
    assert await client.responses.retrieve(second.id) == second
    items = [item async for item in client.responses.input_items.list(second.id, limit=2, order="asc")]
    assert [item.type for item in items] == ["message", "reasoning", "message", "message"]
    assert engine.requests[1].cache_salt == engine.requests[0].cache_salt
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as error:
        await client.responses.retrieve(first.id)
    assert error.value.code == "response_not_found"


async def test_openai_stream(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="fake-model", input="Hi") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "Hello there, friend."
    assert [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert events[-1].type == "response.completed"


async def test_openai_tool_loop(client: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    input: list[Any] = [{"role": "user", "content": "Hi"}]
    first = await client.responses.create(model="fake-model", input=input, tools=[WEATHER], store=False)  # type: ignore[list-item]
    (call,) = [item for item in first.output if item.type == "function_call"]
    # What came is sent back as it came, as the library's documentation has it.
    input += first.output
    input.append({"type": "function_call_output", "call_id": call.call_id, "output": "Rain."})
    await client.responses.create(model="fake-model", input=input, tools=[WEATHER], store=False)  # type: ignore[list-item]
    assert "<|channel|>analysis<|message|>Need weather.<|end|>" in prompt(engine)


async def test_openai_background(client: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    stream = await client.responses.create(model="fake-model", input="Hi", background=True, stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.in_progress":
            break
    await stream.close()
    engine.gate.set()
    id = seen[0].response.id  # type: ignore[union-attr]
    rest = await client.responses.retrieve(id, stream=True, starting_after=seen[-1].sequence_number)
    numbers = [event.sequence_number async for event in rest]
    assert numbers[0] == seen[-1].sequence_number + 1
    whole = await client.responses.retrieve(id)
    assert whole.status == "completed"
    assert (await client.responses.cancel(id)).status == "completed"


async def test_openai_errors(client: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.responses.create(model="fake-model", input="Hi", temperature=3)
    assert error.value.param == "temperature"
    engine.refusal = Overloaded(1.0)
    with pytest.raises(openai.RateLimitError):
        await client.responses.create(model="fake-model", input="Hi")


CODEX_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "exec_command",
        "description": "Runs a command.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"cmd": {"type": "string"}, "yield_time_ms": {"type": "number"}},
            "required": ["cmd"],
            "additionalProperties": False,
        },
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": EDITS},
    },
    {
        "type": "namespace",
        "name": "mcp__docs__",
        "description": "Tools in the mcp__docs__ namespace.",
        "tools": [{"type": "function", "name": "lookup", "strict": False, "defer_loading": True, "parameters": {}}],
    },
    {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": {"type": "object"}},
    {"type": "web_search", "external_web_access": False},
    {"type": "image_generation", "output_format": "png"},
]
CODEX: dict[str, Any] = {
    "model": "fake-model",
    "instructions": "You are a coding agent.",
    "tools": CODEX_TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0190-thread",
    "service_tier": None,
    "client_metadata": {"x-codex-installation-id": "0190"},
}


async def test_a_turn_of_codex(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    history: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandbox: read-only."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List files."}]},
    ]

    async def turn(script: str) -> list[dict[str, Any]]:
        """Codex keeps the items that are done, without ids, and of the reasoning only what is sealed."""
        engine.script = encode(script)
        answer = await http.post("/v1/responses", json=CODEX | {"input": history}, headers={"session-id": "0190"})
        assert answer.status_code == 200, answer.text
        events = sse(answer.text)
        assert events[-1]["type"] == "response.completed" and events[-1]["response"]["usage"]["total_tokens"]
        items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        for item in items:
            kept = {key: value for key, value in item.items() if key not in ("id", "status")}
            if item["type"] == "reasoning":
                del kept["content"]
            history.append(kept)
        return items

    _, call = await turn(
        "<|channel|>analysis<|message|>Need a listing.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.exec_command <|constrain|>json"
        '<|message|>{"cmd": "ls"}<|call|>'
    )
    assert call["name"] == "exec_command"
    history.append({"type": "function_call_output", "call_id": call["call_id"], "output": "a.txt"})
    (patch,) = await turn(f"<|channel|>commentary to=functions.apply_patch code<|message|>{SOME_EDITS}<|call|>")
    assert (patch["type"], patch["input"]) == ("custom_tool_call", SOME_EDITS)
    # The reasoning that led to the first call is still there; what runs elsewhere the model is not told of.
    given = prompt(engine)
    assert "Need a listing." in given and given.count("You are a coding agent.\n\nSandbox: read-only.") == 1
    assert "type mcp__docs__lookup" in given and "web_search" not in given
    history.append({"type": "custom_tool_call_output", "call_id": patch["call_id"], "output": "Success."})
    (lookup,) = await turn(
        "<|channel|>commentary to=functions.mcp__docs__lookup <|constrain|>json<|message|>{}<|call|>"
    )
    assert (lookup["namespace"], lookup["name"]) == ("mcp__docs__", "lookup")
    history.append({"type": "function_call_output", "call_id": lookup["call_id"], "output": "Found."})
    (answer,) = await turn("<|channel|>final<|message|>There is a.txt.<|return|>")
    assert answer["content"][0]["text"] == "There is a.txt."
    assert "<|start|>functions.mcp__docs__lookup to=assistant<|channel|>commentary<|message|>Found." in prompt(engine)
    assert f" code<|message|>{SOME_EDITS}<|call|>" in prompt(engine)
    history.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]})
    await turn("<|channel|>final<|message|>Gladly.<|return|>")
    # After an answer gpt-oss expects no reasoning from before.
    assert "Need a listing." not in prompt(engine)
