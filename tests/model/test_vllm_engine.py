"""The demo model, asked as another gateway asks a vLLM engine."""

import datetime
import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jsonschema
import pytest
from tests.support.vllm_protocol import Protocol, Stub
from tests.unit.worker.conftest import start_worker

from chorus_cluster.harmony.conversation import Conversation, Effort, Message, Role, Tool
from chorus_cluster.harmony.deltas import AnswerDelta, Delta, ToolCallArguments, ToolCallStarted
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.harmony.render import render
from chorus_vocabulary import CALL, CHANNEL, MESSAGE, RETURN
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.config import WorkerConfig

theirs = Protocol()
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}
FINAL = load_encoding().encode("final")
TOOL = Tool("add", "Adds two numbers.", SCHEMA)


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


async def ask(stub: Any, question: Conversation, *after: int, **sampling: Any) -> tuple[Any, list[Delta]]:
    """What comes behind a rendered conversation and these tokens: the message, and what it says as harmony."""
    request = theirs.GenerateRequest(
        request_id="a",
        tokenized=theirs.TokenizedInput(input_ids=[*render(question), *after]),
        sampling_params=theirs.SamplingParams(temperature=0, max_tokens=200, **sampling),
    )
    (response,) = [response async for response in stub.Generate(request)]
    parser = StreamParser(tuple(tool.name for tool in question.tools))
    return response.complete, [*parser.feed(response.complete.output_ids), *parser.finish()]


def asked(text: str, *tools: Tool) -> Conversation:
    return Conversation((Message(Role.USER, text),), tools, Effort.LOW, datetime.date(2026, 11, 22))


async def test_the_demo_model_under_constraints(stub: Any) -> None:
    """A regex behind a header of the caller's; what a gateway asks for as a response format, and as a forced call."""
    bare, _ = await ask(stub, asked("What is 2 + 3?"), CHANNEL, *FINAL, MESSAGE, regex="It is [0-9]+")
    assert bare.finish_reason == "stop"
    assert re.fullmatch(rb"It is [0-9]+", b"".join(map(token_bytes, bare.output_ids[:-1])))
    content = {"type": "json_schema", "json_schema": SCHEMA}
    answer_tag = {"begin": "<|channel|>final<|constrain|>json<|message|>", "content": content, "end": ""}
    reasoning_tag = {"begin": "<|channel|>analysis<|message|>", "content": {"type": "any_text"}, "end": "<|end|>"}
    triggers = ["<|channel|>analysis", "<|channel|>final"]
    tags = {"type": "triggered_tags", "triggers": triggers, "tags": [reasoning_tag, answer_tag], "at_least_one": True}
    whole, deltas = await ask(stub, asked("What is 2 + 3?"), structural_tag=json.dumps({"format": tags}))
    assert whole.finish_reason == "stop" and whole.output_ids[-1] == RETURN
    jsonschema.validate(json.loads("".join(d.text for d in deltas if isinstance(d, AnswerDelta))), SCHEMA)
    begin = "<|channel|>commentary to=functions.add<|constrain|>json<|message|>"
    forced = {"type": "tag", "begin": begin, "content": content, "end": ""}
    whole, deltas = await ask(stub, asked("Hello!", TOOL), structural_tag=json.dumps({"format": forced}))
    assert whole.finish_reason == "stop" and whole.output_ids[-1] == CALL
    assert [delta.name for delta in deltas if isinstance(delta, ToolCallStarted)] == ["add"]
    jsonschema.validate(json.loads("".join(d.text for d in deltas if isinstance(d, ToolCallArguments))), SCHEMA)
    assert not any(isinstance(delta, AnswerDelta) for delta in deltas)


async def test_the_demo_model_stops_at_a_string(stub: Any) -> None:
    whole, _ = await ask(stub, asked("What is 2 + 3?"), stop=["<|message|>"])
    assert (whole.finish_reason, whole.matched_stop_str, whole.output_ids[-1]) == ("stop", "<|message|>", MESSAGE)
    whole, _ = await ask(stub, asked("What is 2 + 3?"), stop=["<|message|>", "5"], skip_special_tokens=True)
    assert (whole.finish_reason, whole.matched_stop_str) == ("stop", "5")
