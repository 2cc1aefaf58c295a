"""The demo model, asked as another gateway asks a vLLM engine."""

import datetime
import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.support.vllm_protocol import Protocol, Stub
from tests.unit.worker.conftest import start_worker

from chorus_cluster.harmony.conversation import Conversation, Effort, Message, Role
from chorus_cluster.harmony.deltas import AnswerDelta
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.harmony.render import render
from chorus_workers.config import WorkerConfig

theirs = Protocol()


@pytest.fixture
async def stub() -> AsyncIterator[Any]:
    worker = await start_worker(WorkerConfig(max_num_seqs=2, max_model_len=512, grpc_port=0, num_threads=1))
    assert worker.grpc_address is not None
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        yield Stub(channel, theirs)
    await worker.shutdown()


async def test_the_demo_model_answers(stub: Any) -> None:
    question = Conversation((Message(Role.USER, "What is 2 + 3?"),), (), Effort.LOW, datetime.date(2026, 11, 22))
    request = theirs.GenerateRequest(
        request_id="a",
        tokenized=theirs.TokenizedInput(input_ids=render(question)),
        sampling_params=theirs.SamplingParams(temperature=0, logprobs=3),
        stream=True,
    )
    *chunks, last = [response async for response in stub.Generate(request)]
    complete = last.complete
    assert complete.finish_reason == "stop"
    token_ids, logprobs, tops = [], [], []
    for response in chunks:
        told = response.chunk.output_logprobs
        assert list(told.token_ids) == list(response.chunk.token_ids)
        token_ids += response.chunk.token_ids
        logprobs += told.token_logprobs
        tops += told.top_logprobs
    assert token_ids == list(complete.output_ids)
    parser = StreamParser(())
    deltas = [*parser.feed(token_ids), *parser.finish()]
    assert "5" in "".join(delta.text for delta in deltas if isinstance(delta, AnswerDelta))
    # Greedy: each token is the likeliest one.
    assert [top.token_ids[0] for top in tops] == token_ids
    assert [top.values[0] for top in tops] == pytest.approx(logprobs)
    assert {len(top.values) for top in tops} == {3}
    assert all(sum(map(math.exp, top.values)) <= 1.0001 for top in tops)
    # The same without a stream, in one message.
    request.stream, request.request_id = False, "b"
    (whole,) = [response.complete async for response in stub.Generate(request)]
    assert list(whole.output_ids) == token_ids
    assert list(whole.output_logprobs.token_ids) == token_ids
    assert list(whole.output_logprobs.token_logprobs) == pytest.approx(logprobs, abs=1e-4)
    assert whole.cached_tokens > 0
