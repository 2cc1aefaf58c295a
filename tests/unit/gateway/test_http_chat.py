"""/v1/chat/completions, whole and streamed, as raw JSON."""

import json
from typing import Any

import httpx
import pytest
from tests.support.chat import TOOL_CALL, encode

from chorus_cluster.errors import Overloaded, RequestFailed, Unavailable
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import engine_pb2

BODY: dict[str, Any] = {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def chat(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=BODY | fields)


def chunks(response: httpx.Response) -> list[Any]:
    """The data of each event; the last must be [DONE]."""
    events = response.text.split("\n\n")
    assert events.pop() == ""
    data = [event.removeprefix("data: ") for event in events]
    assert data.pop() == "[DONE]"
    return [json.loads(item) for item in data]


def deltas(response: httpx.Response) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(response) if chunk["choices"]]


def joined(response: httpx.Response, field: str) -> str:
    return "".join(delta.get(field) or "" for delta in deltas(response))


async def test_whole_answer(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    response = await chat(http)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "fake-model"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello there, friend.",
                "refusal": None,
                "reasoning": "The user greets.",
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    num_prompt = len(engine.requests[0].prompt_token_ids)
    num_completion = len(engine.script)  # type: ignore[arg-type]
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(encode("The user greets."))},
    }


async def test_streamed_answer(http: httpx.AsyncClient) -> None:
    response = await chat(http, stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    all_chunks = chunks(response)
    assert all_chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in all_chunks} == {
        (all_chunks[0]["id"], all_chunks[0]["created"], "fake-model", "chat.completion.chunk")
    }
    assert joined(response, "reasoning") == "The user greets."
    assert joined(response, "content") == "Hello there, friend."
    assert [chunk["choices"][0]["finish_reason"] for chunk in all_chunks[:-1]] == [None] * (len(all_chunks) - 1)
    assert all_chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all("usage" not in chunk for chunk in all_chunks)


async def test_stream_usage_chunk(http: httpx.AsyncClient) -> None:
    whole = await chat(http)
    response = await chat(http, stream=True, stream_options={"include_usage": True})
    *others, last = chunks(response)
    assert last["choices"] == []
    assert last["usage"] == whole.json()["usage"]
    assert all(chunk["usage"] is None for chunk in others)


async def test_tool_call(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    choice = (await chat(http, tools=[WEATHER])).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}


async def test_streamed_tool_call(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    response = await chat(http, tools=[WEATHER], stream=True)
    first, *rest = [delta["tool_calls"][0] for delta in deltas(response) if "tool_calls" in delta]
    assert first["id"].startswith("call_")
    assert first == {
        "index": 0,
        "id": first["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": ""},
    }
    assert len(rest) > 1
    assert all(set(piece) == {"index", "function"} for piece in rest)
    assert "".join(piece["function"]["arguments"] for piece in rest) == '{"city": "Paris"}'
    assert chunks(response)[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_tools_are_hidden_by_tool_choice_none(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await chat(http)
    await chat(http, tools=[WEATHER])
    await chat(http, tools=[WEATHER], tool_choice="none")
    without, with_tools, hidden = (list(request.prompt_token_ids) for request in engine.requests)
    assert hidden == without
    assert len(with_tools) > len(without)


async def test_include_reasoning_false(http: httpx.AsyncClient) -> None:
    assert "reasoning" not in (await chat(http, include_reasoning=False)).json()["choices"][0]["message"]
    assert joined(await chat(http, include_reasoning=False, stream=True), "reasoning") == ""


async def test_length(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    response = await chat(http, max_completion_tokens=5)
    assert engine.requests[0].max_tokens == 5
    assert response.json()["choices"][0]["finish_reason"] == "length"
    assert response.json()["usage"]["completion_tokens"] == 5


async def test_max_tokens_defaults_to_the_rest_of_the_context(
    http: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    await chat(http)
    (request,) = engine.requests
    assert request.max_tokens == engine.max_model_len - len(request.prompt_token_ids)


async def test_sampling_reaches_the_engine(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "frequency_penalty": -1.5,
        "presence_penalty": 1.5,
        "repetition_penalty": 1.25,
        "seed": -1,
        "logit_bias": {"1734": -100, "5": 2.5},
    }
    await chat(http, **fields)
    sampling = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in fields if name not in ("seed", "logit_bias")} == {
        name: value for name, value in fields.items() if name not in ("seed", "logit_bias")
    }
    assert sampling.seed == 2**64 - 1
    assert dict(sampling.logit_bias) == {1734: -100, 5: 2.5}
    assert not sampling.HasField("logprobs")
    assert set(sampling.stop_token_ids) == set(encode("<|return|><|call|><|endoftext|>"))


async def test_each_request_without_a_seed_gets_its_own(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await chat(http)
    await chat(http)
    first, second = engine.requests
    assert first.sampling.seed != second.sampling.seed
    assert first.request_id != second.request_id


async def test_greedy_edge(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await chat(http, temperature=1e-30, top_p=0)
    assert engine.requests[0].sampling.temperature == 0
    assert engine.requests[0].sampling.top_p == pytest.approx(1e-6)


@pytest.mark.parametrize("tokens_per_message", [1, 3, 100])
@pytest.mark.parametrize("stream", [True, False])
async def test_stop_string(
    http: httpx.AsyncClient, engine: FakeEngineClient, stream: bool, tokens_per_message: int
) -> None:
    engine.tokens_per_message = tokens_per_message
    response = await chat(http, stop=["there, f", "never"], stream=stream)
    if stream:
        assert joined(response, "content") == "Hello "
        assert chunks(response)[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        assert response.json()["choices"][0]["message"]["content"] == "Hello "
        assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert engine.num_running == 0
    assert engine.num_aborted == (1 if tokens_per_message < 100 else 0)


async def test_stop_string_does_not_match_in_reasoning(http: httpx.AsyncClient) -> None:
    message = (await chat(http, stop="user")).json()["choices"][0]["message"]
    assert message["reasoning"] == "The user greets."
    assert message["content"] == "Hello there, friend."


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs_are_of_the_answer(http: httpx.AsyncClient, engine: FakeEngineClient, stream: bool) -> None:
    engine.tokens_per_message = 4
    response = await chat(http, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        choices = [chunk["choices"][0] for chunk in chunks(response)]
        entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    else:
        entries = response.json()["choices"][0]["logprobs"]["content"]
    assert engine.requests[0].sampling.logprobs == 2
    assert "".join(entry["token"] for entry in entries) == "Hello there, friend."
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"Hello there, friend."
    assert [entry["logprob"] for entry in entries] == [-0.5] * len(encode("Hello there, friend."))
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in entries] == [[-0.5, -1.5]] * len(entries)


async def test_logprobs_end_at_a_stop_string(http: httpx.AsyncClient) -> None:
    response = await chat(http, logprobs=True, stop=" there")
    choice = response.json()["choices"][0]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["Hello"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize("stream", [True, False])
async def test_refusals_are_statuses(http: httpx.AsyncClient, engine: FakeEngineClient, stream: bool) -> None:
    await chat(http)
    engine.refusal = Overloaded(1.2)
    response = await chat(http, stream=stream)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["code"] == "overloaded"
    engine.refusal = Unavailable()
    response = await chat(http, stream=stream)
    assert response.status_code == 503
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (engine_pb2.FINISH_REASON_DEADLINE, 504),
        (engine_pb2.FINISH_REASON_ERROR, 500),
        (engine_pb2.FINISH_REASON_ABORT, 503),
    ],
)
async def test_failures_in_the_engine(
    http: httpx.AsyncClient,
    engine: FakeEngineClient,
    reason: "engine_pb2.FinishReason.ValueType",
    status: int,
) -> None:
    engine.finish_reason = reason
    assert (await chat(http)).status_code == status
    engine.script = engine.script[:1]  # type: ignore[index]
    assert (await chat(http, stream=True)).status_code == status
    assert engine.num_running == 0


async def test_failure_after_the_headers_is_an_event(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.failure = (8, RequestFailed())
    response = await chat(http, stream=True)
    assert response.status_code == 200
    *before, error = chunks(response)
    assert error == RequestFailed().body()
    assert before[1]["choices"][0]["delta"] == {"reasoning": "The"}


async def test_unknown_exceptions_stay_inside(
    http: httpx.AsyncClient, engine: FakeEngineClient, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: engine_pb2.GenerateRequest) -> list[int]:
        raise ZeroDivisionError("secret")

    engine.script = broken
    response = await chat(http, stream=True)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text


async def test_no_prompt_text_in_logs(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="chorus_cluster")
    body = BODY | {"messages": [{"role": "user", "content": "xyzzy"}]}
    await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-2"})
    assert "Request mine-2 (chatcmpl-" in caplog.text
    assert "ended: stop" in caplog.text
    assert "xyzzy" not in caplog.text
    assert "friend" not in caplog.text


async def test_harmless_fields_are_accepted(http: httpx.AsyncClient) -> None:
    harmless = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "n": 1,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "temperature": None,
        "unheard_of": None,
    }
    assert (await chat(http, **harmless)).status_code == 200


async def test_what_a_client_was_sent_can_be_sent_back(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    message = (await chat(http, tools=[WEATHER])).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "22 C"}
    messages = [*BODY["messages"], message, result]
    assert (await chat(http, tools=[WEATHER], messages=messages)).status_code == 200
    prompt = list(engine.requests[1].prompt_token_ids)
    expected = encode(TOOL_CALL.removesuffix("<|call|>"))
    # The reasoning goes back in as it came, since the tool loop is still open.
    start = next(i for i in range(len(prompt)) if prompt[i : i + 3] == expected[:3])
    reasoning = encode("<|channel|>analysis<|message|>Need weather.<|end|>")
    assert prompt[start : start + len(reasoning)] == reasoning


async def test_request_ids(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    strange = await http.post("/v1/chat/completions", json={}, headers={"x-request-id": "a b\tc" * 50})
    assert strange.status_code == 400
    assert strange.headers["x-request-id"] not in ("", "a b\tc" * 50)


async def test_deadline_reaches_the_engine(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await http.post("/v1/chat/completions", json=BODY, headers={"x-request-timeout-s": "2.5"})
    await http.post("/v1/chat/completions", json=BODY)
    with_deadline, without = engine.requests
    assert with_deadline.HasField("deadline_unix_s")
    assert not without.HasField("deadline_unix_s")
    refused = await http.post("/v1/chat/completions", json=BODY, headers={"x-request-timeout-s": "soon"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "x-request-timeout-s"
