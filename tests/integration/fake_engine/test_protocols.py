"""Every way in, on a running cluster: HTTP, gRPC, health, reflection, metrics."""

import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.integration.cluster import Cluster, wait_until

from chorus_cluster.client import ChorusClient, Settings
from chorus_cluster.errors import DeadlineExceeded, InvalidRequest
from chorus_protos.v1 import chat_pb2, chat_pb2_grpc, completion_pb2

pytestmark = pytest.mark.slow


def grpc_request(num_tokens: int, model: str = "test") -> chat_pb2.ChatCompletionRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hello")
    return chat_pb2.ChatCompletionRequest(model=model, messages=[message], max_completion_tokens=num_tokens)


def test_http_answers_at_once_and_as_a_stream(fake_cluster: Cluster) -> None:
    with fake_cluster.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["test"]
        assert client.get("/health").status_code == 200
        assert "ChatCompletionRequest" in client.get("/openapi.json").json()["components"]["schemas"]
        whole = client.post("/v1/chat/completions", json=fake_cluster.chat_body(max_completion_tokens=23)).json()
        assert whole["choices"][0]["message"]["content"] == "Hello" * 20
        assert whole["usage"]["completion_tokens"] == 23
        text = ""
        body = fake_cluster.chat_body(max_completion_tokens=53, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        for line in lines[:-1]:
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                text += choice["delta"].get("content") or ""
        assert text == "Hello" * 50
        # 50 steps of 10 ms, merged for 20 ms: several messages, and fewer than tokens.
        assert 5 < len(lines) < 50


def test_cached_prompt_tokens_are_told(fake_cluster: Cluster) -> None:
    with fake_cluster.client() as client:
        body = fake_cluster.chat_body(max_completion_tokens=5)
        # Two workers: one of them has seen the third.
        usages = [client.post("/v1/chat/completions", json=body).json()["usage"] for _ in range(3)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert 0 < cached[2] < usages[2]["prompt_tokens"]
    wait_until(lambda: fake_cluster.total("chorus_prefix_cache_hits_total") >= sum(cached), 10, "the workers' pages")
    assert fake_cluster.total("chorus_gateway_cached_prompt_tokens_total") >= sum(cached)


def test_grpc_answers_at_once_and_as_a_stream(fake_cluster: Cluster) -> None:
    with fake_cluster.channel() as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        assert [model.id for model in stub.ListModels(chat_pb2.ListModelsRequest(), timeout=10).models] == ["test"]
        whole = stub.CreateChatCompletion(grpc_request(23), timeout=30)
        assert whole.message.content == "Hello" * 20
        assert whole.finish_reason == chat_pb2.CHAT_FINISH_REASON_LENGTH
        chunks = list(stub.StreamChatCompletion(grpc_request(53), timeout=30))
        text = "".join(delta.content for chunk in chunks for delta in chunk.deltas)
        assert text == "Hello" * 50
        assert len(chunks) > 5
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateChatCompletion(grpc_request(5, model="other"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_client_in_the_package_reaches_everything(fake_cluster: Cluster) -> None:
    with ChorusClient(fake_cluster.grpc_address, Settings(timeout_s=30)) as client:
        assert client.is_healthy()
        assert [model.id for model in client.models()] == ["test"]
        assert client.chat(grpc_request(23)).message.content == "Hello" * 20
        chunks = client.stream_chat(grpc_request(53))
        assert "".join(delta.content for chunk in chunks for delta in chunk.deltas) == "Hello" * 50
        prompt = completion_pb2.Prompt(text=client.detokenize(client.tokenize(grpc_request(1))))
        raw = completion_pb2.CompletionRequest(model="test", prompts=[prompt], max_tokens=23)
        assert client.complete(raw).choices[0].text == "final" + "Hello" * 20
        deltas = [delta for chunk in client.stream_complete(raw) for delta in chunk.deltas]
        assert "".join(delta.text for delta in deltas) == "final" + "Hello" * 20
        assert deltas[-1].usage.completion_tokens == 23
        with pytest.raises(InvalidRequest) as caught:
            list(client.stream_chat(grpc_request(10**6), request_id="mine"))
        assert (caught.value.field, caught.value.request_id) == ("max_completion_tokens", "mine")
        with pytest.raises(DeadlineExceeded):
            client.chat(grpc_request(100_000), timeout_s=0.5)
        wait_until(lambda: fake_cluster.total("chorus_requests_running") == 0, 10, "the engines are told")


def test_health_is_served_as_grpc_tools_expect(fake_cluster: Cluster) -> None:
    with fake_cluster.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "chorus.v1.ChatService", "chorus.v1.CompletionService", "chorus.v1.ResponsesService"):
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        statuses = stub.List(health_pb2.HealthListRequest(), timeout=10).statuses
        assert {status.status for status in statuses.values()} == {health_pb2.HealthCheckResponse.SERVING}
        assert "chorus.v1.CompletionService" in statuses


def test_reflection_describes_the_services(fake_cluster: Cluster) -> None:
    with fake_cluster.channel() as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        methods = {
            "ChatService": {
                *("CreateChatCompletion", "StreamChatCompletion", "ListModels", "GetModel", "Tokenize", "Detokenize")
            },
            "CompletionService": {"CreateCompletion", "StreamCompletion"},
            "ResponsesService": {
                *("CreateResponse", "StreamResponse", "GetResponse", "StreamStoredResponse"),
                *("DeleteResponse", "CancelResponse", "ListInputItems"),
            },
        }
        services = {f"chorus.v1.{name}" for name in methods} | {"grpc.health.v1.Health"}
        assert services <= set(database.get_services())
        for name, expected in methods.items():
            file = database.FindFileContainingSymbol(f"chorus.v1.{name}")
            assert {method.name for service in file.service for method in service.method} == expected


def test_metrics_of_any_gateway_show_every_replica(fake_cluster: Cluster) -> None:
    def all_are_there() -> bool:
        gateways = fake_cluster.samples("chorus_gateway_chats_running", role="gateway")
        workers = fake_cluster.samples("vllm:num_requests_running", role="worker")
        return len(gateways) == 2 and len(workers) == 2

    wait_until(all_are_there, 10, "two gateways and two workers on the page")
    # Either gateway may answer, and each shows the other.
    for _ in range(6):
        assert all_are_there()
    for name in ("chorus_time_to_first_token_seconds_count", "chorus_gateway_time_to_first_token_seconds_count"):
        assert fake_cluster.total(name) > 0
    for name in ("vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"):
        assert len(fake_cluster.samples(name)) == 2


def test_the_cluster_stays_small(fake_cluster: Cluster) -> None:
    processes = fake_cluster.processes()
    total = sum(process.memory_full_info().pss for process in processes)
    assert total < 3e9, [(process.name(), process.memory_full_info().pss) for process in processes]
