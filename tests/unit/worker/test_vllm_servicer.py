"""vLLM's token-level service over a real channel, asked by a client that knows nothing of our code."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.support.vllm_protocol import SERVICE, Protocol, Stub
from tests.unit.worker.conftest import BODY, PREFIX, STOP, fake_config, start_worker

from chorus_protos.v1 import engine_pb2
from chorus_protos.vllm import vllm_engine_pb2
from chorus_workers.config import WorkerConfig
from chorus_workers.runner.fake import FakeModel
from chorus_workers.vllm.convert import requests_from_vllm
from chorus_workers.vllm.servicer import VllmEngineServicer
from chorus_workers.worker import Worker

theirs = Protocol()
OTHER_STOP = 200012


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    model = FakeModel(step_time_s=0.002, prefix=PREFIX, body=BODY, stop=STOP, num_tokens=12)
    worker = await start_worker(
        fake_config(model, grpc_port=0, max_num_seqs=1, max_batched_tokens=64, max_queued_requests=1)
    )
    yield worker
    await worker.shutdown()


@pytest.fixture
async def channel(worker: Worker) -> AsyncIterator[grpc.aio.Channel]:
    assert worker.grpc_address is not None
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return Stub(channel, theirs)


def ask(request_id: str = "a", *, stream: bool = False, input_ids: tuple[int, ...] = (1, 2, 3), **sampling: Any) -> Any:
    return theirs.GenerateRequest(
        request_id=request_id,
        tokenized=theirs.TokenizedInput(original_text="not looked at", input_ids=input_ids),
        sampling_params=theirs.SamplingParams(**sampling),
        stream=stream,
    )


def endless(request_id: str = "a") -> Any:
    return ask(request_id, stream=True, ignore_eos=True)


async def wait_until_idle(stub: Any) -> None:
    async with asyncio.timeout(5):
        while True:
            (load,) = (await stub.GetLoads(theirs.GetLoadsRequest())).loads
            if load.num_total_reqs == load.num_used_tokens == 0:
                return
            await asyncio.sleep(0.01)


async def refusal_of(stub: Any, request: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stub.Generate(request)))
    return caught.value


async def test_without_a_stream_the_answer_is_one_message(stub: Any) -> None:
    (response,) = [response async for response in stub.Generate(ask())]
    complete = response.complete
    # Our end token ended it, though nobody named it; it is part of the answer.
    assert list(complete.output_ids) == [*PREFIX, *[BODY] * 8, STOP]
    assert (complete.finish_reason, complete.prompt_tokens, complete.completion_tokens) == ("stop", 3, 12)
    assert complete.WhichOneof("matched_stop") is None
    assert not complete.HasField("output_logprobs")


async def test_a_stream_is_chunks_and_the_whole(stub: Any) -> None:
    *chunks, last = [response async for response in stub.Generate(ask(stream=True, stop_token_ids=[STOP]))]
    assert len(chunks) > 1
    token_ids = [token_id for response in chunks for token_id in response.chunk.token_ids]
    assert token_ids == list(last.complete.output_ids) == [*PREFIX, *[BODY] * 8, STOP]
    assert sum(response.chunk.completion_tokens for response in chunks) == last.complete.completion_tokens == 12
    assert {response.chunk.prompt_tokens for response in chunks} == {3}
    assert last.complete.matched_token_id == STOP


async def test_a_limit_ends_the_answer(stub: Any) -> None:
    (response,) = [response async for response in stub.Generate(ask(max_tokens=5))]
    assert response.complete.finish_reason == "length"
    assert response.complete.completion_tokens == 5


async def test_end_tokens_can_be_ignored(stub: Any) -> None:
    (response,) = [response async for response in stub.Generate(ask(ignore_eos=True, max_tokens=30))]
    assert response.complete.finish_reason == "length"
    assert STOP in response.complete.output_ids
    (response,) = [
        response async for response in stub.Generate(ask(ignore_eos=True, max_tokens=30, stop_token_ids=[BODY]))
    ]
    assert (response.complete.finish_reason, response.complete.matched_token_id) == ("stop", BODY)


async def test_a_cached_prompt_is_counted(stub: Any) -> None:
    request = ask(input_ids=tuple(range(100)), max_tokens=2)
    cached = []
    for _ in range(2):
        (response,) = [response async for response in stub.Generate(request)]
        cached.append(response.complete.cached_tokens)
    assert cached[0] == 0 < cached[1] < 100


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"stop": [""]}, "stop"),
        ({"stop": ["a" * 1025]}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"n": 129}, "n"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ({"json_schema": ""}, "json_schema"),
        ({"json_schema": " " * 262145}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"grammar": "a"}, "grammar"),
        ({"grammar": "root ::= a"}, "grammar"),
        ({"structural_tag": "a"}, "structural_tag"),
        ({"structural_tag": '{"format": {"type": "regex", "pattern": "("}}'}, "structural_tag"),
        ({"json_object": False}, "json_object"),
        ({"choice": theirs.ChoiceConstraint()}, "choice"),
        ({"choice": theirs.ChoiceConstraint(choices=["a"] * 1025)}, "choice"),
        ({"regex": "a", "ignore_eos": True}, "stop_token_ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"later": True}, "1000"),
    ],
)
async def test_sampling_that_is_not_served_is_refused_by_name(stub: Any, sampling: dict[str, Any], field: str) -> None:
    error = await refusal_of(stub, ask(**sampling))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.details()).startswith(f"sampling_params.{field} ")
    assert ("field", f"sampling_params.{field}") in tuple(error.trailing_metadata() or ())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text": "Hello"}, "text"),
        ({"mm_inputs": theirs.MultimodalInputs(mm_hashes=["a"])}, "mm_inputs"),
        ({"extra_mm_inputs": [theirs.MultimodalInputs()]}, "extra_mm_inputs"),
        ({"media_refs": theirs.MediaRefs(items=[theirs.MediaRef(url="data:,")])}, "media_refs"),
        ({"kv_transfer_params": theirs.KvTransferParams(remote_port=1)}, "kv_transfer_params"),
        ({"kv_transfer_params_json": "{}"}, "kv_transfer_params_json"),
        ({"data_parallel_rank": 1}, "data_parallel_rank"),
        ({"later": True}, "1000"),
        ({"tokenized": theirs.TokenizedInput()}, "tokenized.input_ids"),
        ({"tokenized": theirs.TokenizedInput(input_ids=[10**6])}, "tokenized.input_ids"),
        ({"request_id": ""}, "request_id"),
    ],
)
async def test_requests_that_are_not_served_are_refused_by_name(stub: Any, fields: dict[str, Any], field: str) -> None:
    request = ask(max_tokens=1)
    for name, value in fields.items():
        request.ClearField(name)
        request.MergeFrom(theirs.GenerateRequest(**{name: value}))
    error = await refusal_of(stub, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.details()).startswith(f"{field} ")
    assert ("field", field) in tuple(error.trailing_metadata() or ())


def ours_of(**sampling: Any) -> engine_pb2.GenerateRequest:
    (request,) = all_ours_of(**sampling)
    return request


def all_ours_of(**sampling: Any) -> list[engine_pb2.GenerateRequest]:
    return requests_from_vllm(vllm_engine_pb2.GenerateRequest.FromString(ask(**sampling).SerializeToString()))


def test_what_is_left_out_takes_the_protocol_s_defaults() -> None:
    sampling = ours_of().sampling
    assert {field.name for field, _ in sampling.ListFields()} == {
        *("top_k", "min_p", "frequency_penalty", "presence_penalty", "stop_token_ids")
    }
    assert sampling.top_k == sampling.min_p == sampling.frequency_penalty == sampling.presence_penalty == 0
    assert list(sampling.stop_token_ids) == [200002, 199999, 200012]
    assert ours_of().max_tokens == 0


def test_every_sampling_parameter_arrives() -> None:
    request = ours_of(
        temperature=0.0,
        top_p=0.5,
        top_k=4,
        min_p=0.25,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        repetition_penalty=1.5,
        seed=-1,
        logit_bias={3: -100.0},
        stop_token_ids=[5],
        ignore_eos=True,
        logprobs=0,
        max_tokens=7,
        # These change nothing about token ids.
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        include_stop_str_in_output=True,
        grammar_from_first_token=True,
        # Found outside of the engine.
        stop=["."],
        n=1,
    )
    assert request.sampling == engine_pb2.SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=4,
        min_p=0.25,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        repetition_penalty=1.5,
        seed=2**64 - 1,
        logit_bias={3: -100.0},
        stop_token_ids=[5],
        logprobs=0,
    )
    assert (request.request_id, list(request.prompt_token_ids), request.max_tokens) == ("a", [1, 2, 3], 7)


def test_several_answers_draw_with_seeds_of_their_own() -> None:
    assert [request.sampling.seed for request in all_ours_of(n=3, seed=-2)] == [2**64 - 2, 2**64 - 1, 0]
    assert not any(request.sampling.HasField("seed") for request in all_ours_of(n=3))
    assert len({request.request_id for request in all_ours_of(n=3)}) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_are_told_apart_by_their_index(stub: Any, stream: bool) -> None:
    """One runs and one waits; the first is done before the second begins."""
    responses = [response async for response in stub.Generate(ask(n=2, stream=stream))]
    wholes = {response.complete.index: response.complete for response in responses if response.HasField("complete")}
    assert {index: list(whole.output_ids) for index, whole in wholes.items()} == {
        index: [*PREFIX, *[BODY] * 8, STOP] for index in range(2)
    }
    for index in range(2):
        chunks = [response.chunk for response in responses if response.HasField("chunk")]
        token_ids = [token_id for chunk in chunks if chunk.index == index for token_id in chunk.token_ids]
        assert token_ids == (list(wholes[index].output_ids) if stream else [])


async def test_of_several_answers_all_are_admitted_or_the_call_ends(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(ask(n=5, ignore_eos=True)):
            pass
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await wait_until_idle(stub)


async def test_a_full_queue_is_resource_exhausted(stub: Any) -> None:
    running = stub.Generate(endless("a"))
    await running.read()
    waiting = stub.Generate(endless("b"))
    async with asyncio.timeout(5):
        while (await stub.GetLoads(theirs.GetLoadsRequest())).loads[0].num_waiting_reqs == 0:
            await asyncio.sleep(0.01)
    error = await refusal_of(stub, endless("c"))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.GetServerInfo(theirs.GetServerInfoRequest())).active_requests == 2
    running.cancel()
    waiting.cancel()
    await wait_until_idle(stub)


async def test_cancelling_a_call_frees_its_memory(stub: Any) -> None:
    call = stub.Generate(endless())
    await call.read()
    call.cancel()
    await wait_until_idle(stub)


async def test_the_call_s_deadline_ends_the_request(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(endless(), timeout=0.3):
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until_idle(stub)


async def test_abort_by_ids(stub: Any) -> None:
    request = endless("mine")
    request.sampling_params.n = 2
    call = stub.Generate(request)
    await anext(aiter(call))
    await stub.Abort(theirs.AbortRequest(request_ids=["never seen", "mine"]))
    responses = [response async for response in call]
    wholes = [response.complete for response in responses if response.HasField("complete")]
    assert sorted((whole.index, whole.finish_reason) for whole in wholes) == [(0, "abort"), (1, "abort")]
    await wait_until_idle(stub)


async def test_what_model_and_server_are(worker: Worker, stub: Any) -> None:
    model = await stub.GetModelInfo(theirs.GetModelInfoRequest())
    assert (model.served_model_name, model.vocab_size, model.is_generation) == ("fake", 201088, True)
    assert model.max_context_length == model.max_req_input_len == worker._engine.info.max_model_len
    assert (list(model.eos_token_ids), list(model.architectures)) == ([200002, 199999, 200012], ["GptOssForCausalLM"])
    before = await stub.GetServerInfo(theirs.GetServerInfoRequest())
    assert (before.server_type, before.last_receive_timestamp, before.max_num_seqs) == ("vllm-grpc", 0, 1)
    _ = [response async for response in stub.Generate(ask(max_tokens=1))]
    after = await stub.GetServerInfo(theirs.GetServerInfoRequest())
    assert after.last_receive_timestamp == pytest.approx(time.time(), abs=5)
    assert after.uptime_seconds >= before.uptime_seconds >= 0


async def test_a_path_is_named_where_a_tokenizer_is(tmp_path: Path) -> None:
    worker = create_autospec(Worker, instance=True)
    worker.model_info.return_value = engine_pb2.ModelInfo(model="mine")
    context = create_autospec(grpc.aio.ServicerContext, instance=True)
    servicer = VllmEngineServicer(worker, WorkerConfig(model=str(tmp_path)))
    for tokenizer, path in ((False, ""), (True, str(tmp_path))):
        if tokenizer:
            (tmp_path / "tokenizer.json").write_text("{}")
        info = await servicer.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest(), context)
        assert (info.served_model_name, info.model_path, info.tokenizer_path) == ("mine", path, path)


async def test_a_dead_engine_is_unavailable_and_not_healthy(worker: Worker, channel: Any, stub: Any) -> None:
    assert (await stub.HealthCheck(theirs.HealthCheckRequest())).healthy
    health = health_pb2_grpc.HealthStub(channel)
    named = health_pb2.HealthCheckRequest(service=SERVICE)
    assert (await health.Check(named)).status == health_pb2.HealthCheckResponse.SERVING
    call = stub.Generate(endless())
    await anext(aiter(call))
    os.kill(worker._engine.pid, 9)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not (await stub.HealthCheck(theirs.HealthCheckRequest())).healthy
    assert (await health.Check(named)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_has_it(channel: grpc.aio.Channel) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert SERVICE in names


async def test_other_methods_of_the_protocol_are_unimplemented(channel: grpc.aio.Channel) -> None:
    for method in ("Embed", "FlushCache"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/{method}")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_our_copy_of_the_protocol_is_a_part_of_theirs() -> None:
    """Names, numbers, types and presence of every field."""
    ours = descriptor_pb2.FileDescriptorProto()
    vllm_engine_pb2.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == theirs.file.package
    written = {message.name: message for message in theirs.file.message_type}
    assert [message.name for message in ours.message_type if message.name not in written] == []
    for message in ours.message_type:
        fields = {field.name: field for field in written[message.name].field}
        for field in message.field:
            other = fields[field.name]
            facts = [(f.number, f.label, f.type, f.type_name, f.proto3_optional) for f in (field, other)]
            assert facts[0] == facts[1], (message.name, field.name)
    assert {method.name for method in ours.service[0].method} == {
        *("Generate", "Abort", "HealthCheck", "GetModelInfo", "GetServerInfo", "GetLoads")
    }
