"""CompletionService over gRPC, beside /v1/completions."""

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from tests.support.chat import encode, eventually

from chorus_cluster.errors import RequestFailed
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2, completion_pb2, engine_pb2

Stub = "completion_pb2_grpc.CompletionServiceAsyncStub"
PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
MARKED = "<|channel|>final<|message|>Grüße, 世界!<|return|>"
TEXT = "finalGrüße, 世界!"
STOP = completion_pb2.COMPLETION_FINISH_REASON_STOP


def script(request: engine_pb2.GenerateRequest) -> list[int]:
    """Says which prompt it was, and which answer."""
    return encode(f"{len(request.prompt_token_ids)} {request.sampling.seed}<|return|>")


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient(encode(MARKED))


def text(prompt: str) -> completion_pb2.Prompt:
    return completion_pb2.Prompt(text=prompt)


def tokens(*token_ids: int) -> completion_pb2.Prompt:
    return completion_pb2.Prompt(tokens=completion_pb2.TokenIds(token_ids=token_ids))


def ask(*prompts: completion_pb2.Prompt, **fields: Any) -> completion_pb2.CompletionRequest:
    fields = {"model": "fake-model", "max_tokens": 50, "seed": 1} | fields
    return completion_pb2.CompletionRequest(prompts=prompts or [text(PROMPT)], **fields)


async def test_a_whole_answer(completion_stub: Stub, engine: FakeEngineClient) -> None:
    answer = await completion_stub.CreateCompletion(ask())
    assert [*engine.requests[0].prompt_token_ids] == encode(PROMPT)
    assert answer.id.startswith("cmpl-") and answer.model == "fake-model" and answer.created
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, len(choice.logprobs)) == (TEXT, STOP, 0)
    assert answer.usage.prompt_tokens == len(encode(PROMPT))
    assert answer.usage.completion_tokens == len(encode(MARKED))


async def test_a_stream_is_the_whole_answer_in_pieces(completion_stub: Stub, engine: FakeEngineClient) -> None:
    engine.script = script
    request = ask(text("Hi"), tokens(1, 2, 3), n=2, logprobs=1)
    whole = await completion_stub.CreateCompletion(request)
    assert [choice.text for choice in whole.choices] == ["1 1", "1 2", "3 1", "3 2"]
    first, *rest = [chunk async for chunk in completion_stub.StreamCompletion(request)]
    assert (len(first.deltas), first.model) == (0, "fake-model")
    pieces = [completion_pb2.CompletionChoice() for _ in whole.choices]
    *deltas, last = [delta for chunk in rest for delta in chunk.deltas]
    assert last.usage == whole.usage and whole.usage.prompt_tokens == 4
    for delta in deltas:
        piece = pieces[delta.choice]
        assert not piece.finish_reason
        piece.text += delta.text
        piece.finish_reason = delta.finish_reason
        if delta.HasField("logprob"):
            piece.logprobs.append(delta.logprob)
    assert pieces == [*whole.choices]
    assert len({request.request_id for request in engine.requests}) == 8


async def test_it_asks_the_engine_what_http_asks(
    completion_stub: Stub, http: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    fields = {
        **{"temperature": 0.5, "top_p": 0.25, "top_k": 4, "min_p": 0.5, "frequency_penalty": 1.0, "n": 2},
        **{
            "presence_penalty": -1.0,
            "repetition_penalty": 1.5,
            "seed": -5,
            "max_tokens": 9,
            "logprobs": 2,
            "priority": 3,
        },
    }
    whole = await completion_stub.CreateCompletion(ask(tokens(4, 5), logit_bias={7: 1.5}, stop=["世"], **fields))
    body = {"model": "fake-model", "prompt": [4, 5], "logit_bias": {"7": 1.5}, "stop": "世", **fields}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    for request in engine.requests:
        request.ClearField("request_id")
    assert engine.requests[:2] == engine.requests[2:]
    answers = response.json()["choices"]
    assert [choice.text for choice in whole.choices] == [answer["text"] for answer in answers] == ["finalGrüße, "] * 2
    assert [entry.sampled.token for entry in whole.choices[0].logprobs] == answers[0]["logprobs"]["tokens"]


@pytest.mark.parametrize(
    ("output_format", "fields"),
    [
        (chat_pb2.OutputFormat(regex="a+"), {"structured_outputs": {"regex": "a+"}}),
        (chat_pb2.OutputFormat(lark="start: /a/"), {"structured_outputs": {"grammar": "start: /a/"}}),
        (chat_pb2.OutputFormat(choice=chat_pb2.Choices(texts=["a"])), {"structured_outputs": {"choice": ["a"]}}),
        (chat_pb2.OutputFormat(json_object=True), {"response_format": {"type": "json_object"}}),
        (
            chat_pb2.OutputFormat(json_schema=chat_pb2.JsonSchemaFormat(schema_json='{"type": "null"}')),
            {"structured_outputs": {"json": '{"type": "null"}'}},
        ),
    ],
)
async def test_a_form_is_asked_for_as_over_http(
    completion_stub: Stub,
    http: httpx.AsyncClient,
    engine: FakeEngineClient,
    output_format: chat_pb2.OutputFormat,
    fields: dict[str, Any],
) -> None:
    await completion_stub.CreateCompletion(ask(output_format=output_format))
    await http.post("/v1/completions", json={"model": "fake-model", "prompt": PROMPT, **fields})
    first, second = engine.requests
    assert first.guide == second.guide and len(first.guide.grammars) == 1
    assert not first.guide.messages[0].header


async def test_defaults(completion_stub: Stub, engine: FakeEngineClient) -> None:
    await completion_stub.CreateCompletion(completion_pb2.CompletionRequest(model="fake-model", prompts=[text("Hi")]))
    (request,) = engine.requests
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p) == (16, 1, 1)
    assert not request.sampling.HasField("logprobs") and not request.HasField("guide")


async def test_markup_and_echo(completion_stub: Stub) -> None:
    answer = await completion_stub.CreateCompletion(ask(skip_special_tokens=False))
    assert answer.choices[0].text == MARKED.removesuffix("<|return|>")
    answer = await completion_stub.CreateCompletion(ask(text(PROMPT), echo=True, skip_special_tokens=True))
    assert answer.choices[0].text == PROMPT + TEXT


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (completion_pb2.CompletionRequest(model="fake-model"), "prompt"),
        (ask(completion_pb2.Prompt()), "prompt"),
        (ask(text("Hi"), tokens()), "prompt[1]"),
        (ask(tokens(1, 201_088)), "prompt[1]"),
        (ask(*[text("a")] * 129), "prompt"),
        (ask(*[text("a")] * 65, n=2), "prompt"),
        (ask(logprobs=21), "logprobs"),
        (ask(echo=True, logprobs=0), "echo"),
        (ask(max_tokens=0), "max_tokens"),
        (ask(max_tokens=5000), "max_tokens"),
        (ask(temperature=3), "temperature"),
        (ask(n=0), "n"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_is_wrong_is_named(
    completion_stub: Stub, request_: completion_pb2.CompletionRequest, field: str, is_stream: bool
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if is_stream:
            await completion_stub.StreamCompletion(request_).read()
        else:
            await completion_stub.CreateCompletion(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    metadata = dict(caught.value.trailing_metadata() or ())
    assert metadata["error-field"] == field
    details = Status.FromString(metadata["grpc-status-details-bin"]).details
    violations = [BadRequest.FromString(d.value) for d in details if d.TypeName() == "google.rpc.BadRequest"]
    assert violations[0].field_violations[0].field == field


async def test_another_model_is_not_found(completion_stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await completion_stub.CreateCompletion(ask(model="x"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_failure_in_the_middle(completion_stub: Stub, engine: FakeEngineClient) -> None:
    engine.failure = (3, RequestFailed())
    texts = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for chunk in completion_stub.StreamCompletion(ask()):
            texts += [delta.text for delta in chunk.deltas]
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert TEXT.startswith("".join(texts)) and texts


async def test_a_client_that_leaves_ends_every_answer(
    completion_stub: Stub, engine: FakeEngineClient, service: ChatService
) -> None:
    engine.gate = asyncio.Event()
    call = completion_stub.StreamCompletion(ask(text("a"), text("b"), n=2))
    await call.read()
    assert engine.num_running == 4
    call.cancel()
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 4
    count = {"route": "/chorus.v1.CompletionService/StreamCompletion", "status": "CANCELLED"}
    await eventually(lambda: service.metrics.registry.get_sample_value("chorus_gateway_requests_total", count) == 1)


async def test_malformed_messages(grpc_channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await grpc_channel.unary_unary("/chorus.v1.CompletionService/CreateCompletion")(b"\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
