"""/v1/completions: raw prompts."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from tests.support.chat import encode, eventually

from chorus_cluster.errors import InvalidRequest, RequestFailed
from chorus_cluster.harmony.plain_parser import PlainParser
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import STOP_TOKEN_IDS

PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
MARKED = "<|channel|>final<|message|>Grüße, 世界 🧑🏽‍🚀!<|return|>"
TEXT = "finalGrüße, 世界 🧑🏽‍🚀!"
BODY: dict[str, Any] = {"model": "fake-model", "prompt": PROMPT, "max_tokens": 50, "seed": 1}


def script(request: engine_pb2.GenerateRequest) -> list[int]:
    """Says which prompt it was, and which answer."""
    return encode(f"{len(request.prompt_token_ids)} {request.sampling.seed}<|return|>")


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient(encode(MARKED))


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/completions", json=BODY | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    text = (await http.post("/v1/completions", json=BODY | fields | {"stream": True})).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_whole_answer(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    answer = await ask(http)
    assert [*engine.requests[0].prompt_token_ids] == encode(PROMPT)
    assert engine.requests[0].max_tokens == 50
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens"] == len(encode(PROMPT))
    assert answer["usage"]["completion_tokens"] == len(encode(MARKED))


@pytest.mark.parametrize("tokens_per_message", [1, 3, 100])
async def test_a_stream(http: httpx.AsyncClient, engine: FakeEngineClient, tokens_per_message: int) -> None:
    engine.tokens_per_message = tokens_per_message
    chunks = await stream(http, stream_options={"include_usage": True})
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == TEXT
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == (await ask(http))["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "usage" not in (await stream(http))[0]


async def test_markup_is_spelled_on_demand_but_for_the_end(http: httpx.AsyncClient) -> None:
    answer = await ask(http, skip_special_tokens=False)
    assert answer["choices"][0]["text"] == MARKED.removesuffix("<|return|>")


async def test_prompts_of_all_kinds_and_several_answers(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = script
    for prompt, lengths in (
        ("Hi", [1]),
        (["Hi"], [1]),
        (["Hi", PROMPT], [1, len(encode(PROMPT))]),
        ([1, 2, 3], [3]),
        ([[1, 2, 3], [4]], [3, 1]),
    ):
        answer = await ask(http, prompt=prompt, n=2)
        assert [choice["index"] for choice in answer["choices"]] == [*range(2 * len(lengths))]
        assert [choice["text"] for choice in answer["choices"]] == [f"{n} {1 + i}" for n in lengths for i in range(2)]
        assert answer["usage"]["prompt_tokens"] == sum(lengths)
        chunks = await stream(http, prompt=prompt, n=2, stream_options={"include_usage": True})
        texts = [""] * 2 * len(lengths)
        for chunk in chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == [choice["text"] for choice in answer["choices"]]
        assert chunks[-1]["usage"] == answer["usage"]
    ids = [request.request_id for request in engine.requests]
    assert len(set(ids)) == len(ids)


async def test_echo(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.script = script
    answer = await ask(http, echo=True, prompt=[PROMPT, "Hi"])
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [f"{PROMPT}{len(encode(PROMPT))} 1", "Hi1 1"]
    chunks = await stream(http, echo=True, prompt="Hi")
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "Hi1 1"


async def test_stop_strings(http: httpx.AsyncClient) -> None:
    answer = await ask(http, stop=["世", "!"])
    assert answer["choices"][0]["text"] == "finalGrüße, "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (await ask(http, max_tokens=2))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"structured_outputs": {"regex": "a+"}}, engine_pb2.Grammar(regex="a+")),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, engine_pb2.Grammar(lark='root ::= "a"')),
        ({"structured_outputs": {"choice": ["a", 'b"']}}, engine_pb2.Grammar(lark='start: "a" | "b\\""')),
        ({"structured_outputs": {"json": "true"}}, engine_pb2.Grammar(json_schema="true")),
        ({"response_format": {"type": "json_object"}}, engine_pb2.Grammar(json_schema='{"type":"object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}},
            engine_pb2.Grammar(json_schema='{"type": "null"}'),
        ),
    ],
)
async def test_a_form_binds_each_answer_from_its_first_token_on(
    http: httpx.AsyncClient, engine: FakeEngineClient, fields: dict[str, Any], grammar: engine_pb2.Grammar
) -> None:
    await ask(http, prompt=["Hi", PROMPT], n=2, **fields)
    expected = engine_pb2.Guide(grammars=[grammar], messages=[engine_pb2.GuidedMessage(grammar=0)])
    assert [request.guide for request in engine.requests] == [expected] * 4
    # The prompts say nothing of it.
    assert {len(request.prompt_token_ids) for request in engine.requests} == {1, len(encode(PROMPT))}
    assert set(engine.requests[0].sampling.stop_token_ids) == set(STOP_TOKEN_IDS)


async def test_without_a_form_nothing_binds_it(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await ask(http, response_format={"type": "text"})
    assert not engine.requests[0].HasField("guide")


async def test_the_engine_s_refusal_names_the_client_s_field(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.failure = (0, InvalidRequest("guide.messages[0].grammar", "no such rule"))
    response = await http.post("/v1/completions", json=BODY | {"structured_outputs": {"grammar": "start: a"}})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "structured_outputs.grammar")
    assert error["message"] == "structured_outputs.grammar: can't be enforced: no such rule"


async def test_the_default_is_sixteen_tokens(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await ask(http, max_tokens=None)
    assert engine.requests[0].max_tokens == 16


async def test_logprobs(http: httpx.AsyncClient) -> None:
    whole = (await ask(http, logprobs=2))["choices"][0]
    entries = whole["logprobs"]
    assert {len(column) for column in entries.values()} == {len(entries["tokens"])}
    assert entries["tokens"][:3] == ["final", "Gr", "ü"]
    assert entries["text_offset"][:3] == [0, 5, 7]
    assert all(token in top for token, top in zip(entries["tokens"], entries["top_logprobs"], strict=True))
    assert all(len(top) <= 3 for top in entries["top_logprobs"])
    chunks = [choice for chunk in await stream(http, logprobs=2) for choice in chunk["choices"]]
    together: dict[str, list[Any]] = {name: [] for name in entries}
    for choice in chunks:
        for name, column in (choice["logprobs"] or {}).items():
            together[name] += column
    assert together == entries


async def test_openai_s_client(http: httpx.AsyncClient) -> None:
    client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", http_client=http, max_retries=0)
    answer = await client.completions.create(model="fake-model", prompt="Hi", max_tokens=50)
    assert answer.choices[0].text == TEXT
    pieces = await client.completions.create(model="fake-model", prompt="Hi", max_tokens=50, stream=True)
    assert "".join([choice.text async for piece in pieces for choice in piece.choices]) == TEXT


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": None}, "prompt", "is required"),
        ({"prompt": 5}, "prompt", "must be"),
        ({"prompt": [1, "a"]}, "prompt[0]", "must be"),
        ({"prompt": ""}, "prompt", "at least one token"),
        ({"prompt": []}, "prompt", "at least one prompt"),
        ({"prompt": ["Hi", ""]}, "prompt[1]", "at least one token"),
        ({"prompt": [[1], []]}, "prompt[1]", "at least one token"),
        ({"prompt": [1, 201_088]}, "prompt[1]", "from 0 to 201087"),
        ({"prompt": [[1], [2, -1]]}, "prompt[1][1]", "from 0 to 201087"),
        ({"prompt": [1] * 5000}, "prompt", "5000 tokens"),
        ({"prompt": "a" * 100_000}, "prompt", "100000 characters"),
        ({"prompt": " a" * 4095, "max_tokens": 5}, "max_tokens", "leave room for"),
        ({"prompt": " a" * 4096}, "prompt", "takes 4096 tokens"),
        ({"prompt": ["a"] * 129}, "prompt", "129 prompts"),
        ({"prompt": [[]] * 100_000}, "prompt", "100000 prompts"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", "65 prompts"),
        ({"n": 129}, "n", "from 1 to 128"),
        ({"best_of": 2}, "best_of", "as 'n'"),
        ({"suffix": "b"}, "suffix", "is not supported"),
        ({"echo": True, "logprobs": 0}, "echo", "with 'logprobs'"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": True}, "logprobs", "must be an integer"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"logit_bias": {"201088": 1}}, "logit_bias", "names token 201088"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream': true"),
        ({"promt": "a"}, "promt", "did you mean 'prompt'"),
        ({"messages": []}, "messages", "is not a known field"),
    ],
)
async def test_bad_bodies(
    http: httpx.AsyncClient, engine: FakeEngineClient, fields: dict[str, Any], param: str, says: str
) -> None:
    response = await http.post("/v1/completions", json=BODY | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert says in response.json()["error"]["message"]
    assert engine.requests == []


async def test_another_model_and_what_is_no_object(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/completions", json=BODY | {"model": "x"})).status_code == 404
    for content in (b"[]", b"5", b"{"):
        assert (await http.post("/v1/completions", content=content)).status_code == 400


async def test_a_failure_in_a_stream_is_an_event(http: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.failure = (3, RequestFailed())
    text = (await http.post("/v1/completions", json=BODY | {"stream": True})).text
    assert '"code":"request_failed"' in text and text.endswith("data: [DONE]\n\n")


async def test_a_client_that_leaves_ends_it(server_url: str, engine: FakeEngineClient) -> None:
    engine.gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=server_url) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=BODY | {"prompt": ["a", "b"]}))
        await eventually(lambda: engine.num_running == 2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 2


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    parser = PlainParser()
    half = encode("🧑🏽")[0]
    deltas = [*parser.feed([half]), *parser.feed(encode("a")), *parser.feed([half, 201_088, -5]), *parser.finish()]
    assert "".join(delta.text for delta in deltas) == "�a�"  # type: ignore[union-attr]
    assert sorted(i for delta in deltas for i in delta.token_indices) == [0, 1, 2]  # type: ignore[union-attr]
