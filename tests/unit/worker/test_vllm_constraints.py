"""Constraints and stop strings of vLLM's protocol, over a real channel and down to the engine's masks."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.support.vllm_protocol import Protocol, Stub
from tests.unit.worker.conftest import fake_config, start_worker

from chorus_cluster.harmony.encoding import load_encoding
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import CALL, CHANNEL, END, MESSAGE, RETURN, START, STOP_TOKEN_IDS
from chorus_vocabulary.token_table import token_bytes
from chorus_workers.runner.fake import FakeModel
from chorus_workers.worker import Worker

# One worker for all: its grammars are loaded once.
pytestmark = pytest.mark.asyncio(loop_scope="module")
theirs = Protocol()
ASSISTANT = load_encoding().encode("assistant")[0]
# What the fake model writes where nothing forbids it.
WORDS = load_encoding().encode("Wait. What über 😀 all of it, then? 😀")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[Worker]:
    model = FakeModel(step_time_s=0.001, prefix=tuple(WORDS), body=WORDS[0], stop=RETURN, num_tokens=len(WORDS) + 1)
    worker = await start_worker(fake_config(model, grpc_port=0, max_num_seqs=4, max_batched_tokens=64))
    yield worker
    await worker.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(worker: Worker) -> AsyncIterator[Any]:
    assert worker.grpc_address is not None
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        yield Stub(channel, theirs)


def ask(*, stream: bool = False, input_ids: Sequence[int] = (START, ASSISTANT), **sampling: Any) -> Any:
    return theirs.GenerateRequest(
        request_id="a",
        tokenized=theirs.TokenizedInput(input_ids=input_ids),
        sampling_params=theirs.SamplingParams(**sampling),
        stream=stream,
    )


async def whole(stub: Any, request: Any) -> Any:
    *_, last = [response async for response in stub.Generate(request)]
    return last.complete


def text(token_ids: Sequence[int]) -> str:
    return b"".join(map(token_bytes, token_ids)).decode()


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "[a-c]{4}-(x|y)"}, "[a-c]{4}-(x|y)"),
        ({"choice": theirs.ChoiceConstraint(choices=['he said "no"', "über 😀"])}, 'he said "no"|über 😀'),
        ({"json_schema": '{"enum": [12, "b"]}'}, '12|"b"'),
        ({"json_schema": "true", "max_tokens": 40}, None),
        ({"json_object": True, "max_tokens": 40}, r"\{.*"),
        ({"grammar": 'start: "a" | "b" NUMBER\nNUMBER: /[0-9]{3}/'}, "a|b[0-9]{3}"),
        ({"grammar": 'root ::= "b" number\nnumber ::= [0-9]{3}'}, "b[0-9]{3}"),
        ({"structural_tag": '{"format": {"type": "const_string", "value": "so be it"}}'}, "so be it"),
        ({"structural_tag": '{"format": {"type": "grammar", "grammar": "root ::= \\"x\\""}}'}, "x"),
    ],
)
async def test_a_constraint_binds_the_answer_from_its_first_token_on(
    stub: Any, constraint: dict[str, Any], pattern: str | None
) -> None:
    complete = await whole(stub, ask(**constraint))
    token_ids = list(complete.output_ids)
    if complete.finish_reason == "stop":
        assert token_ids.pop() in STOP_TOKEN_IDS
    else:
        assert complete.completion_tokens == 40
    assert not set(token_ids) & {CHANNEL, MESSAGE, END, *STOP_TOKEN_IDS}
    assert pattern is None or re.fullmatch(pattern, text(token_ids), re.DOTALL)


async def test_stop_token_ids_end_a_constrained_answer_too(stub: Any) -> None:
    (bang,) = load_encoding().encode("!")
    complete = await whole(stub, ask(regex="ab|cd", ignore_eos=True, stop_token_ids=[bang]))
    assert text(complete.output_ids) in ("ab!", "cd!")
    assert complete.matched_token_id == bang


async def test_several_answers_keep_to_it(stub: Any) -> None:
    responses = [response async for response in stub.Generate(ask(regex="[a-c]{3}", n=3))]
    assert sorted(response.complete.index for response in responses) == [0, 1, 2]
    assert all(re.fullmatch("[a-c]{3}", text(response.complete.output_ids[:-1])) for response in responses)


def call(name: str, schema: dict[str, Any], *, opening: str) -> dict[str, Any]:
    return {
        "begin": f"{opening}<|channel|>commentary to=functions.{name}<|constrain|>json<|message|>",
        "content": {"type": "json_schema", "json_schema": schema},
        "end": "",
    }


async def test_a_call_that_a_tag_forces(stub: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    tags = [call("find", schema, opening=opening) for opening in ("<|start|>assistant", "")]
    forced = {"type": "triggered_tags", "triggers": [tag["begin"][:29] for tag in tags], "tags": tags}
    forced |= {"at_least_one": True, "stop_after_first": True}
    request = ask(structural_tag=json.dumps({"format": forced}), grammar_from_first_token=True)
    token_ids = list((await whole(stub, request)).output_ids)
    header = load_encoding().encode(tags[1]["begin"], allowed_special="all")
    assert token_ids[: len(header)] == header and token_ids[-1] == CALL
    assert json.loads(text(token_ids[len(header) : -1])) == {"n": 7}


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"ignore_eos": True}, "sampling_params.ignore_eos"), ({"input_ids": [START]}, "tokenized.input_ids")],
)
async def test_tags_need_harmony_around_them(stub: Any, fields: dict[str, Any], named: str) -> None:
    tag = {"type": "tag", "begin": "<|channel|>final<|message|>", "content": {"type": "any_text"}, "end": "<|return|>"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(stub, ask(structural_tag=json.dumps({"format": tag}), **fields))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value.details()).startswith(f"{named} ")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "matched", "ends_with"),
    [
        (["What"], "What", " What"),
        # Across tokens, and in the middle of one.
        ([". Wh"], ". Wh", ". What"),
        # Tokens that are no whole characters.
        (["ber 😀 al"], "ber 😀 al", " all"),
        (["then", "all", "Wait. What"], "Wait. What", "What"),
        # Both are complete with one token: the first named.
        (["l", "all"], "l", " all"),
    ],
)
async def test_a_stop_string_ends_the_answer(
    worker: Worker, stub: Any, stop: list[str], matched: str, ends_with: str, stream: bool
) -> None:
    request = ask(stop=stop, stream=stream, logprobs=0)
    responses = [response async for response in stub.Generate(request)]
    complete = responses[-1].complete
    assert (complete.finish_reason, complete.WhichOneof("matched_stop")) == ("stop", "matched_stop_str")
    assert complete.matched_stop_str == matched
    written = text(complete.output_ids)
    assert matched in written and written.endswith(ends_with)
    # Up to the token that completes it.
    assert matched not in text(list(complete.output_ids)[:-1])
    assert complete.completion_tokens == len(complete.output_ids)
    told = [list(response.chunk.output_logprobs.token_ids) for response in responses[:-1]]
    assert sum(told, []) == list(complete.output_ids) if stream else not told
    # The request is over in the engine too.
    async with asyncio.timeout(5):
        while (await worker.load(engine_pb2.GetLoadRequest())).num_running:
            await asyncio.sleep(0.01)


async def test_without_a_match_the_answer_is_whole(stub: Any) -> None:
    complete = await whole(stub, ask(stop=["nowhere", "Wait!"]))
    assert list(complete.output_ids) == [*WORDS, RETURN]
    assert complete.WhichOneof("matched_stop") is None


@pytest.mark.parametrize("skip", [False, True])
async def test_special_tokens_are_text_unless_they_are_skipped(stub: Any, skip: bool) -> None:
    request = ask(stop=["<|return|>"], skip_special_tokens=skip, ignore_eos=True, max_tokens=len(WORDS) + 5)
    complete = await whole(stub, request)
    assert (complete.finish_reason, len(complete.output_ids)) == (
        ("length", len(WORDS) + 5) if skip else ("stop", len(WORDS) + 1)
    )


async def test_each_of_several_answers_ends_by_itself(stub: Any) -> None:
    responses = [response async for response in stub.Generate(ask(stop=["all"], n=3))]
    assert [response.complete.matched_stop_str for response in responses] == ["all"] * 3
