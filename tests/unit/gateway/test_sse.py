"""Server-sent events: recorded streams byte for byte, and any text through the hand-made JSON."""

import datetime
import json
import os
import secrets
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.chat import ANSWER, TOOL_CALL, encode

from chorus_cluster.errors import RequestFailed
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.app import build_http_app
from chorus_cluster.gateway.openai.sse import ChunkWriter
from chorus_cluster.routing.fake_client import FakeEngineClient

GOLDEN = Path(__file__).parents[2] / "golden" / "sse"
PREAMBLE_AND_CALL = (
    "<|channel|>analysis<|message|>Say so, then look.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>Let me “look”…\n<|end|>"
    f"<|start|>assistant{TOOL_CALL.partition('<|start|>assistant')[2]}"
)
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
RECORDED = {
    "answer": (ANSWER, {}),
    "answer_usage": (ANSWER, {"stream_options": {"include_usage": True}}),
    "answer_logprobs": (ANSWER, {"logprobs": True, "top_logprobs": 1, "max_tokens": 16}),
    "stop_string": (ANSWER, {"stop": [", friend"]}),
    "tool_call": (TOOL_CALL, {"tools": TOOLS}),
    "preamble_and_call": (PREAMBLE_AND_CALL, {"tools": TOOLS}),
}


async def record(name: str) -> bytes:
    """The body of the stream: one token a message, to a client that keeps up, so that nothing is merged."""
    script, fields = RECORDED[name]
    engine = FakeEngineClient(encode(script), interval_s=0.001)
    service = ChatService(engine, today=lambda: datetime.date(2025, 6, 28), clock=lambda: 1751068800.0)
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True} | fields
    transport = httpx.ASGITransport(app=build_http_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return (await client.post("/v1/chat/completions", json=body)).content


@pytest.mark.parametrize("name", RECORDED)
async def test_recorded_streams(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CHORUS_RECORD=1 the recordings are written anew: read what changed before you commit it."""
    monkeypatch.setattr(secrets, "token_hex", lambda num_bytes: "0" * 2 * num_bytes)
    stream = await record(name)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("CHORUS_RECORD") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream)
    assert stream == path.read_bytes()


def parse(data: bytes) -> list[object]:
    """As a client that splits lines wherever Python does."""
    lines = data.decode().splitlines()
    assert lines[1::2] == [""] * (len(lines) // 2)
    return [json.loads(line.removeprefix("data: ")) for line in lines[::2] if line != "data: [DONE]"]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_survives(texts: list[str]) -> None:
    writer = ChunkWriter("chatcmpl-1", 1, 'odd "name"\u2028', include_usage=True)
    kinds = (ev.Answer, ev.Reasoning, lambda text: ev.ToolCallArguments(0, text))
    for kind in kinds:
        chunks = parse(writer.events(kind(text) for text in texts))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]  # type: ignore[index]
        found = [
            delta.get("content", delta.get("reasoning"))
            if "tool_calls" not in delta
            else delta["tool_calls"][0]["function"]["arguments"]
            for delta in deltas
        ]
        assert found == texts
        assert all(chunk["model"] == 'odd "name"\u2028' and chunk["usage"] is None for chunk in chunks)  # type: ignore[index, call-overload]


@given(name=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_tool_name_survives(name: str) -> None:
    writer = ChunkWriter("chatcmpl-1", 1, "m", include_usage=False)
    (chunk,) = parse(writer.events([ev.ToolCallStart(2, "call_1", name)]))
    function = {"name": name, "arguments": ""}
    call = {"index": 2, "id": "call_1", "type": "function", "function": function}
    assert chunk["choices"][0]["delta"] == {"tool_calls": [call]}  # type: ignore[index]


def test_impossible_tokens_have_a_finite_logprob() -> None:
    writer = ChunkWriter("chatcmpl-1", 1, "m", include_usage=False)
    entry = ev.Logprob(ev.Candidate("a", b"a", float("-inf")), ())
    (chunk,) = parse(writer.events([ev.Answer("a", (entry,))]))
    assert chunk["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0  # type: ignore[index]


def test_error_event_ends_the_stream() -> None:
    data = ChunkWriter("chatcmpl-1", 1, "m", include_usage=False).error(RequestFailed())
    assert data.endswith(b"data: [DONE]\n\n")
    assert parse(data) == [RequestFailed().body()]
