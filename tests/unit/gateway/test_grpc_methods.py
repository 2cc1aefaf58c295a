"""ChatService over gRPC."""

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from tests.support.chat import TOOL_CALL, encode, eventually

from chorus_cluster.errors import Overloaded, RequestFailed
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.grpc.chat import GrpcChatMethods
from chorus_cluster.routing.fake_client import FakeEngineClient
from chorus_protos.v1 import chat_pb2

Stub = "chat_pb2_grpc.ChatServiceAsyncStub"
USER = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")
REQUEST = chat_pb2.ChatCompletionRequest(model="fake-model", messages=[USER])


async def test_unary(chat_stub: Stub, engine: FakeEngineClient) -> None:
    response = await chat_stub.CreateChatCompletion(REQUEST)
    assert response.message.content == "Hello there, friend."
    assert response.message.reasoning == "The user greets."
    assert response.message.role == chat_pb2.ROLE_ASSISTANT
    assert response.finish_reason == chat_pb2.CHAT_FINISH_REASON_STOP
    num_prompt = len(engine.requests[0].prompt_token_ids)
    assert response.usage.prompt_tokens == num_prompt
    assert response.usage.total_tokens == num_prompt + len(engine.script)  # type: ignore[arg-type]
    assert response.usage.reasoning_tokens == len(encode("The user greets."))


async def test_stream(chat_stub: Stub) -> None:
    chunks = [chunk async for chunk in chat_stub.StreamChatCompletion(REQUEST)]
    deltas = [delta for chunk in chunks for delta in chunk.deltas]
    assert "".join(delta.reasoning for delta in deltas) == "The user greets."
    assert "".join(delta.content for delta in deltas) == "Hello there, friend."
    assert list(chunks[0].deltas) == []
    assert [delta.WhichOneof("delta") for delta in chunks[-1].deltas][-2:] == ["finish_reason", "usage"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_equal_prompts_over_both_protocols(chat_stub: Stub, http, engine: FakeEngineClient) -> None:  # type: ignore[no-untyped-def]
    """All fields that both have mean the same."""
    await chat_stub.CreateChatCompletion(
        chat_pb2.ChatCompletionRequest(
            model="fake-model",
            messages=[
                chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, content="Be brief."),
                USER,
                chat_pb2.ChatMessage(
                    role=chat_pb2.ROLE_ASSISTANT,
                    reasoning="Hm.",
                    tool_calls=[chat_pb2.ToolCall(id="c", name="f", arguments="{}")],
                ),
                chat_pb2.ChatMessage(role=chat_pb2.ROLE_TOOL, tool_call_id="c", content="22"),
            ],
            tools=[chat_pb2.FunctionTool(name="f", description="d", parameters_json='{"type": "object"}')],
            reasoning_effort=chat_pb2.REASONING_EFFORT_HIGH,
            max_completion_tokens=9,
            temperature=0.5,
            top_k=3,
            seed=-5,
            logit_bias={7: 1.5},
            top_logprobs=2,
        )
    )
    response = await http.post(
        "/v1/chat/completions",
        json={
            "model": "fake-model",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning": "Hm.",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "22"},
            ],
            "tools": [
                {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
            ],
            "reasoning_effort": "high",
            "max_tokens": 9,
            "temperature": 0.5,
            "top_k": 3,
            "seed": -5,
            "logit_bias": {"7": 1.5},
            "logprobs": True,
            "top_logprobs": 2,
        },
    )
    assert response.status_code == 200
    over_grpc, over_http = engine.requests
    over_grpc.request_id = over_http.request_id = ""
    assert over_grpc == over_http


async def test_tool_call_deltas(chat_stub: Stub, engine: FakeEngineClient) -> None:
    engine.script = encode(TOOL_CALL)
    deltas = [delta async for chunk in chat_stub.StreamChatCompletion(REQUEST) for delta in chunk.deltas]
    first, *rest = [delta.tool_call for delta in deltas if delta.HasField("tool_call")]
    assert first.name == "get_weather"
    assert first.id.startswith("call_")
    assert "".join(piece.arguments for piece in rest) == '{"city": "Paris"}'
    assert not any(piece.name or piece.id for piece in rest)
    assert chat_pb2.CHAT_FINISH_REASON_TOOL_CALLS in [delta.finish_reason for delta in deltas]


async def test_logprobs_follow_their_text(chat_stub: Stub) -> None:
    request = chat_pb2.ChatCompletionRequest(model="fake-model", messages=[USER], top_logprobs=1, stop=["friend"])
    deltas = [delta async for chunk in chat_stub.StreamChatCompletion(request) for delta in chunk.deltas]
    entries = [delta.logprob for delta in deltas if delta.HasField("logprob")]
    # The last token's first byte, the space before the stop string, was shown.
    assert "".join(delta.content for delta in deltas) == "Hello there, "
    assert b"".join(entry.sampled.token_bytes for entry in entries) == b"Hello there, friend"
    assert [len(entry.top) for entry in entries] == [1] * len(entries)


async def test_refusal_is_the_status(chat_stub: Stub, engine: FakeEngineClient) -> None:
    await chat_stub.ListModels(chat_pb2.ListModelsRequest())
    engine.refusal = Overloaded(1.5)
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await chat_stub.CreateChatCompletion(REQUEST)
    with pytest.raises(grpc.aio.AioRpcError) as stream:
        await chat_stub.StreamChatCompletion(REQUEST).read()
    for caught in (unary.value, stream.value):
        assert caught.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.details() == Overloaded(1.5).message
        assert dict(caught.trailing_metadata() or ())["retry-after"] == "2"
        details = details_of(caught)
        assert details["ErrorInfo"] == ErrorInfo(reason="OVERLOADED", domain="chorus")
        assert details["RetryInfo"].retry_delay.ToMilliseconds() == 1500
        assert details.keys() == {"ErrorInfo", "RequestInfo", "RetryInfo"}


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The details of a status, by their types; it must be the call's own, as client libraries demand."""
    metadata = dict(error.trailing_metadata() or ())
    status = Status.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found: dict[str, Any] = {}
    for detail in status.details:
        kind = {"ErrorInfo": ErrorInfo, "BadRequest": BadRequest, "RetryInfo": RetryInfo, "RequestInfo": RequestInfo}
        name = detail.TypeName().removeprefix("google.rpc.")
        found[name] = kind[name]()
        assert detail.Unpack(found[name])
    assert found["RequestInfo"].request_id == metadata["x-request-id"]
    return found


async def test_details_name_the_field_at_fault(chat_stub: Stub) -> None:
    request = chat_pb2.ChatCompletionRequest(model="fake-model", messages=[USER], temperature=3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.CreateChatCompletion(request, metadata=[("x-request-id", "mine")])
    details = details_of(caught.value)
    assert details["ErrorInfo"].reason == "INVALID_VALUE"
    (violation,) = details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("temperature", caught.value.details())
    assert details["RequestInfo"].request_id == "mine"


async def test_the_longest_details_fit_into_trailers(chat_stub: Stub) -> None:
    request = chat_pb2.ChatCompletionRequest(model="ü" * 100_000, messages=[USER])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.CreateChatCompletion(request)
    assert details_of(caught.value)["BadRequest"].field_violations[0].field == "model"


async def test_failure_in_the_middle(chat_stub: Stub, engine: FakeEngineClient) -> None:
    engine.failure = (8, RequestFailed())
    call = chat_stub.StreamChatCompletion(REQUEST)
    texts = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for chunk in call:
            texts += [delta.reasoning for delta in chunk.deltas]
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "".join(texts) == "The user greets."


async def test_unknown_exceptions_stay_inside(chat_stub: Stub, engine: FakeEngineClient) -> None:
    engine.script = lambda request: [1 // 0]
    for call in (chat_stub.CreateChatCompletion(REQUEST), chat_stub.StreamChatCompletion(REQUEST).read()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "division" not in (caught.value.details() or "")


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_clients_end_ends_the_request(
    chat_stub: Stub, engine: FakeEngineClient, service: ChatService, end: str
) -> None:
    engine.gate = asyncio.Event()
    call = chat_stub.StreamChatCompletion(REQUEST, timeout=0.5 if end == "deadline" else None)
    # Nothing is generated yet: the first chunk tells of the admission.
    assert (await call.read()).id.startswith("chatcmpl-")
    assert engine.num_running == 1
    if end == "cancel":
        call.cancel()
    else:
        assert engine.requests[0].HasField("deadline_unix_s")
    await eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 1
    count = {"route": "/chorus.v1.ChatService/StreamChatCompletion", "status": "CANCELLED"}
    await eventually(lambda: service.metrics.registry.get_sample_value("chorus_gateway_requests_total", count) == 1)


async def test_models(chat_stub: Stub, service: ChatService) -> None:
    (model,) = (await chat_stub.ListModels(chat_pb2.ListModelsRequest())).models
    assert (model.id, model.max_model_len, model.owned_by) == ("fake-model", 4096, "chorus")


async def test_one_model(chat_stub: Stub) -> None:
    (listed,) = (await chat_stub.ListModels(chat_pb2.ListModelsRequest())).models
    assert await chat_stub.GetModel(chat_pb2.GetModelRequest(model="fake-model")) == listed
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.GetModel(chat_pb2.GetModelRequest(model="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_long_model_name_does_not_drown_the_status(chat_stub: Stub) -> None:
    request = chat_pb2.ChatCompletionRequest(model="é" * 100_000, messages=REQUEST.messages)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.CreateChatCompletion(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'ééé" in str(caught.value.details())


async def test_timeout_metadata(chat_stub: Stub, engine: FakeEngineClient) -> None:
    await chat_stub.CreateChatCompletion(REQUEST, metadata=[("x-request-timeout-s", "5")])
    assert engine.requests[0].HasField("deadline_unix_s")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.CreateChatCompletion(REQUEST, metadata=[("x-request-timeout-s", "-1")])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["CreateChatCompletion", "StreamChatCompletion", "ListModels"])
async def test_malformed_messages(grpc_channel: grpc.aio.Channel, method: str) -> None:
    path = f"/chorus.v1.ChatService/{method}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method.startswith("Stream"):
            await grpc_channel.unary_stream(path)(b"\xff\xff\xff").read()
        else:
            await grpc_channel.unary_unary(path)(b"\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid protobuf" in (caught.value.details() or "")


async def test_large_messages(chat_stub: Stub) -> None:
    user = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="a" * 1_100_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat_stub.CreateChatCompletion(chat_pb2.ChatCompletionRequest(model="fake-model", messages=[user]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata() or ())["error-code"] == "payload_too_large"


async def test_streams_raise_behind_serves_own_proxy(service: ChatService, engine: FakeEngineClient) -> None:
    class Context:
        code: grpc.StatusCode | None = None

        def invocation_metadata(self) -> list[tuple[str, str]]:
            return []

        def set_code(self, code: grpc.StatusCode) -> None:
            self.code = code

        def set_details(self, details: str) -> None:
            pass

        def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
            pass

    engine.refusal = Overloaded(1)
    context = Context()
    chunks = GrpcChatMethods(service, raises_in_streams=True).StreamChatCompletion(REQUEST, context)
    with pytest.raises(Overloaded):
        await anext(chunks)
    assert context.code == grpc.StatusCode.RESOURCE_EXHAUSTED
