"""What a worker takes, and what it refuses, field by field."""

import math
import time

import pytest

from chorus_protos.v1 import engine_pb2
from chorus_workers import convert
from chorus_workers.engine.output import TokenLogprobs
from chorus_workers.engine.request import FinishReason, Refusal, RefusalReason, Refused
from chorus_workers.engine.stats import EngineLoad
from chorus_workers.engine.stream import TokenChunk
from chorus_workers.runner.base import RunnerInfo
from chorus_workers.sampling_params import SamplingParams

INFO = RunnerInfo(
    vocab_size=100, max_model_len=64, block_size=4, num_blocks=16, num_slots=2, max_batched_tokens=8, num_shards=3
)


def request(**fields: object) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(**{"request_id": "a", "prompt_token_ids": [1, 2], **fields})  # type: ignore[arg-type]


def sampling(**fields: object) -> engine_pb2.GenerateRequest:
    return request(sampling=engine_pb2.SamplingParams(**fields))  # type: ignore[arg-type]


def test_an_empty_sampling_means_the_defaults_and_a_seed_of_our_own() -> None:
    first, second = (convert.request_from_pb(request(), INFO) for _ in range(2))
    assert first.params != SamplingParams()
    assert first.params == SamplingParams(seed=first.params.seed)
    assert first.params.seed != second.params.seed
    assert (first.max_tokens, first.num_resumed_tokens, first.deadline) == (0, 0, math.inf)
    assert first.arrival_time == pytest.approx(time.monotonic(), abs=5)


def test_every_field_arrives() -> None:
    given = {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 4,
        "min_p": 0.25,
        "frequency_penalty": -2.0,
        "presence_penalty": 2.0,
        "repetition_penalty": 1.5,
        "seed": 2**64 - 1,
        "logit_bias": {3: -100.0, 99: 100.0},
    }
    message = sampling(**given, stop_token_ids=[5, 99], logprobs=0)
    message.max_tokens, message.num_resumed_tokens, message.deadline_unix_s = 9, 1, time.time() + 100
    message.cache_salt = "tenant"
    converted = convert.request_from_pb(message, INFO)
    assert converted.params == SamplingParams(**given, stop_token_ids=frozenset({5, 99}), num_top_logprobs=0)  # type: ignore[arg-type]
    assert (converted.request_id, list(converted.prompt_token_ids)) == ("a", [1, 2])
    assert (converted.max_tokens, converted.num_resumed_tokens, converted.cache_salt) == (9, 1, "tenant")
    assert converted.deadline == pytest.approx(time.monotonic() + 100, abs=5)


def test_top_k_beyond_the_vocabulary_is_the_vocabulary() -> None:
    assert convert.request_from_pb(sampling(top_k=2**32 - 1), INFO).params.top_k == 100


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(request_id=""), "request_id"),
        (request(request_id="x" * 257), "request_id"),
        (request(prompt_token_ids=[]), "prompt_token_ids"),
        (request(prompt_token_ids=[1, 100]), "prompt_token_ids"),
        (request(num_resumed_tokens=2), "num_resumed_tokens"),
        (request(cache_salt="é" * 129), "cache_salt"),
        (request(deadline_unix_s=math.nan), "deadline_unix_s"),
        (request(deadline_unix_s=math.inf), "deadline_unix_s"),
        (sampling(temperature=-0.1), "sampling.temperature"),
        (sampling(temperature=math.nan), "sampling.temperature"),
        (sampling(temperature=math.inf), "sampling.temperature"),
        (sampling(top_p=0), "sampling.top_p"),
        (sampling(top_p=1.1), "sampling.top_p"),
        (sampling(top_p=math.nan), "sampling.top_p"),
        (sampling(min_p=-0.1), "sampling.min_p"),
        (sampling(min_p=1.1), "sampling.min_p"),
        (sampling(frequency_penalty=2.1), "sampling.frequency_penalty"),
        (sampling(presence_penalty=-2.1), "sampling.presence_penalty"),
        (sampling(repetition_penalty=0), "sampling.repetition_penalty"),
        (sampling(repetition_penalty=math.inf), "sampling.repetition_penalty"),
        (sampling(logit_bias={1: 100.5}), "sampling.logit_bias"),
        (sampling(logit_bias={1: math.nan}), "sampling.logit_bias"),
        (sampling(logit_bias={100: 1}), "sampling.logit_bias"),
        (sampling(stop_token_ids=[100]), "sampling.stop_token_ids"),
        (sampling(stop_token_ids=[1] * 1025), "sampling.stop_token_ids"),
        (sampling(logprobs=21), "sampling.logprobs"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(message: engine_pb2.GenerateRequest, field: str) -> None:
    with pytest.raises(Refused) as caught:
        convert.request_from_pb(message, INFO)
    refusal = caught.value.refusal
    assert (refusal.reason, refusal.field) == (RefusalReason.INVALID_ARGUMENT, field)
    assert refusal.message.startswith(field + " ")


def test_too_many_biases_are_refused() -> None:
    message = sampling(logit_bias=dict.fromkeys(range(1025), 1.0))
    with pytest.raises(Refused, match="at most 1024"):
        convert.request_from_pb(message, INFO)


def test_a_chunk_becomes_a_message() -> None:
    chunk = TokenChunk(
        token_ids=[5, 6],
        logprobs=[TokenLogprobs(-0.5, [(5, -0.5), (1, -2.0)]), TokenLogprobs(-1.5, ())],
        finish_reason=FinishReason.ERROR,
        error_message="odd",
        queue_time_s=0.25,
        num_cached_tokens=3,
    )
    message = convert.chunk_to_pb(chunk)
    assert list(message.token_ids) == [5, 6]
    assert [(entry.sampled.token_id, entry.sampled.logprob) for entry in message.logprobs] == [(5, -0.5), (6, -1.5)]
    assert [[(top.token_id, top.logprob) for top in entry.top] for entry in message.logprobs] == [
        [(5, -0.5), (1, -2.0)],
        [],
    ]
    assert message.finish_reason == engine_pb2.FINISH_REASON_ERROR
    assert (message.error_message, message.queue_time_s, message.num_cached_tokens) == ("odd", 0.25, 3)


def test_reasons_have_the_numbers_of_the_protocol() -> None:
    for reason in FinishReason:
        assert engine_pb2.FinishReason.Name(reason) == f"FINISH_REASON_{reason.name}"
    for refusal in RefusalReason:
        assert engine_pb2.RefusalReason.Name(refusal) == f"REFUSAL_REASON_{refusal.name}"
    assert len(engine_pb2.FinishReason.keys()) == len(FinishReason) + 1
    assert len(engine_pb2.RefusalReason.keys()) == len(RefusalReason) + 1


def test_a_refusal_becomes_the_only_message() -> None:
    message = convert.refusal_to_pb(Refusal(RefusalReason.OVERLOADED, "full", retry_after_s=1.5)).refusal
    assert (message.reason, message.message, message.retry_after_s) == (2, "full", 1.5)
    unhinted = convert.refusal_to_pb(Refusal(RefusalReason.INVALID_ARGUMENT, "no", field="max_tokens")).refusal
    assert unhinted.field == "max_tokens"
    assert not unhinted.HasField("retry_after_s")


def test_model_info_and_load() -> None:
    info = convert.info_to_pb(INFO, "demo")
    assert (info.model, info.vocab_size, info.max_model_len) == ("demo", 100, 64)
    assert (info.num_shards, info.kv_block_size, info.num_kv_blocks) == (3, 4, 16)
    load = convert.load_to_pb(EngineLoad(1, 2, 3, 0.5))
    assert (load.num_running, load.num_waiting, load.num_outstanding_tokens, load.kv_usage) == (1, 2, 3, 0.5)
