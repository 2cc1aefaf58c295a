"""`chorus serve` without any setting, asked by the command line, HTTP and gRPC."""

import re
import socket
from pathlib import Path

import httpx
import pytest
from tests.integration.cluster import Cluster, chorus
from tests.support.sockets import KEEPALIVE, keepalive_timers

from chorus_protos.v1 import chat_pb2, chat_pb2_grpc

pytestmark = pytest.mark.slow


def test_without_settings_the_demo_model_answers(demo_cluster: Cluster, tmp_path: Path) -> None:
    said = demo_cluster.log.read_text()
    assert "Chorus serves chorus-demo." in said
    assert "and answered: Chorus is" in said
    chat = chorus(
        "chat", "What is 2 + 3?", "--temperature", "0", log=tmp_path / "chat.log", CHORUS_URL=demo_cluster.url
    )
    assert chat.wait(60) == 0
    reasoning, answer = (tmp_path / "chat.log").read_text().strip().split("\n\n")
    assert reasoning
    assert "5" in answer
    with demo_cluster.client() as client, demo_cluster.channel() as channel:
        question = {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 0, "seed": 1}
        body = question | {"model": "chorus-demo", "n": 3}
        answers = client.post("/v1/chat/completions", json=body).json()
        assert [choice["message"]["content"].strip() for choice in answers["choices"]] == [answer.strip()] * 3
        # The same prompt, raw: the answer with its markup holds the same text.
        prompt = client.post("/tokenize", json=question).json()
        assert prompt["count"] == answers["usage"]["prompt_tokens"]
        raw = {"model": "chorus-demo", "prompt": prompt["tokens"], "temperature": 0, "max_tokens": 500}
        completion = client.post("/v1/completions", json=raw | {"skip_special_tokens": False}).json()
        assert answer.strip() in completion["choices"][0]["text"]
        assert "<|channel|>final<|message|>" in completion["choices"][0]["text"]
        # And held to a form from its first token on.
        form = {"structured_outputs": {"regex": "It is [0-9]{1,3}!"}}
        bound = client.post("/v1/completions", json=raw | form | {"n": 2}).json()
        assert [choice["finish_reason"] for choice in bound["choices"]] == ["stop"] * 2
        assert all(re.fullmatch("It is [0-9]{1,3}!", choice["text"]) for choice in bound["choices"])
        refused = client.post("/v1/completions", json=raw | {"structured_outputs": {"regex": "("}})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "structured_outputs.regex"
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        text = stub.Detokenize(chat_pb2.DetokenizeRequest(token_ids=prompt["tokens"]), timeout=30).text
        assert [*stub.Tokenize(chat_pb2.TokenizeRequest(prompt=text), timeout=30).token_ids] == prompt["tokens"]


def test_a_silent_client_is_asked_whether_it_is_there(demo_cluster: Cluster) -> None:
    """By HAProxy, in Serve's configuration and ours: keepalives run on the connection."""
    url = httpx.URL(demo_cluster.url)
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert keepalive_timers(url.port or 80, client.getsockname()[1]) == [KEEPALIVE]
