"""Between protobuf and the engine: the only place where a worker checks what a client sent."""

import math
import secrets
import time
from array import array

import numpy as np

from chorus_protos.v1 import engine_pb2
from chorus_workers.convert_guide import guide_from_pb
from chorus_workers.engine.request import GenerationRequest, Refusal, RefusalReason, Refused
from chorus_workers.engine.stats import EngineLoad
from chorus_workers.engine.stream import TokenChunk
from chorus_workers.runner.base import RunnerInfo
from chorus_workers.sampling_params import MAX_TOP_LOGPROBS, SamplingParams

MAX_REQUEST_ID_LENGTH = 256
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_CACHE_SALT_BYTES = 256


def request_from_pb(request: engine_pb2.GenerateRequest, info: RunnerInfo) -> GenerationRequest:
    """Checks a request and converts it; draws a seed where none was given. Arrival is now.

    Errors: Refused with INVALID_ARGUMENT, naming the field.
    """
    if not 0 < len(request.request_id) <= MAX_REQUEST_ID_LENGTH:
        raise _invalid("request_id", f"must have 1 to {MAX_REQUEST_ID_LENGTH} characters")
    # An array, since it goes to the engine's process: pickling a list of 100,000 ids takes 8 ms there and back.
    prompt_token_ids = array("I", request.prompt_token_ids)
    if not prompt_token_ids:
        raise _invalid("prompt_token_ids", "must not be empty")
    _check_token_ids("prompt_token_ids", int(np.frombuffer(prompt_token_ids, dtype=np.uintc).max()), info)
    if request.num_resumed_tokens >= len(prompt_token_ids):
        raise _invalid("num_resumed_tokens", "must be less than the number of prompt_token_ids")
    if len(request.cache_salt.encode()) > MAX_CACHE_SALT_BYTES:
        raise _invalid("cache_salt", f"must have at most {MAX_CACHE_SALT_BYTES} bytes")
    params = params_from_pb(request.sampling, info)
    return GenerationRequest(
        request_id=request.request_id,
        prompt_token_ids=prompt_token_ids,
        params=params,
        max_tokens=request.max_tokens,
        num_resumed_tokens=request.num_resumed_tokens,
        arrival_time=time.monotonic(),
        deadline=_deadline(request),
        priority=request.priority,
        cache_salt=request.cache_salt,
        guide=guide_from_pb(request.guide, info, params.stop_token_ids) if request.HasField("guide") else None,
    )


def params_from_pb(sampling: engine_pb2.SamplingParams, info: RunnerInfo) -> SamplingParams:
    """Errors: Refused with INVALID_ARGUMENT, naming the field."""
    stop_token_ids = list(sampling.stop_token_ids)
    if len(stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid("sampling.stop_token_ids", f"must have at most {MAX_STOP_TOKEN_IDS} entries")
    _check_token_ids("sampling.stop_token_ids", max(stop_token_ids, default=0), info)
    num_top_logprobs = sampling.logprobs if sampling.HasField("logprobs") else None
    if num_top_logprobs is not None and num_top_logprobs > MAX_TOP_LOGPROBS:
        raise _invalid("sampling.logprobs", f"must be at most {MAX_TOP_LOGPROBS}")
    defaults = SamplingParams()
    return SamplingParams(
        temperature=_number(sampling, "temperature", defaults.temperature, 0.0, math.inf),
        top_p=_number(sampling, "top_p", defaults.top_p, 0.0, 1.0, exclude_least=True),
        top_k=min(sampling.top_k, info.vocab_size),
        min_p=_number(sampling, "min_p", defaults.min_p, 0.0, 1.0),
        frequency_penalty=_number(sampling, "frequency_penalty", defaults.frequency_penalty, -2.0, 2.0),
        presence_penalty=_number(sampling, "presence_penalty", defaults.presence_penalty, -2.0, 2.0),
        repetition_penalty=_number(
            sampling, "repetition_penalty", defaults.repetition_penalty, 0.0, math.inf, exclude_least=True
        ),
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
        logit_bias=_logit_bias(sampling, info),
        stop_token_ids=frozenset(stop_token_ids),
        num_top_logprobs=num_top_logprobs,
    )


def chunk_to_pb(chunk: TokenChunk) -> engine_pb2.GenerateResponse:
    response = engine_pb2.GenerateResponse(token_ids=chunk.token_ids)
    for token_id, logprobs in zip(chunk.token_ids, chunk.logprobs, strict=False):
        entry = response.logprobs.add()
        entry.sampled.token_id = token_id
        entry.sampled.logprob = logprobs.logprob
        for top_id, logprob in logprobs.top:
            entry.top.add(token_id=top_id, logprob=logprob)
    if chunk.finish_reason is not None:
        response.finish_reason = engine_pb2.FinishReason.ValueType(chunk.finish_reason)
        response.error_message = chunk.error_message
    if chunk.queue_time_s or chunk.num_cached_tokens:
        response.queue_time_s = chunk.queue_time_s
        response.num_cached_tokens = chunk.num_cached_tokens
    return response


def refusal_to_pb(refusal: Refusal) -> engine_pb2.GenerateResponse:
    return engine_pb2.GenerateResponse(
        refusal=engine_pb2.Refusal(
            reason=engine_pb2.RefusalReason.ValueType(refusal.reason),
            message=refusal.message,
            field=refusal.field,
            retry_after_s=refusal.retry_after_s,
        )
    )


def info_to_pb(info: RunnerInfo, served_model_name: str) -> engine_pb2.ModelInfo:
    return engine_pb2.ModelInfo(
        model=served_model_name,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        num_shards=info.num_shards,
        kv_block_size=info.block_size,
        num_kv_blocks=info.num_blocks,
    )


def load_to_pb(load: EngineLoad) -> engine_pb2.EngineLoad:
    return engine_pb2.EngineLoad(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_outstanding_tokens=load.num_outstanding_tokens,
        kv_usage=load.kv_usage,
    )


def _deadline(request: engine_pb2.GenerateRequest) -> float:
    """The deadline on the monotonic clock, which the engine uses."""
    if not request.HasField("deadline_unix_s"):
        return math.inf
    if not math.isfinite(request.deadline_unix_s):
        raise _invalid("deadline_unix_s", "must be finite")
    return time.monotonic() + request.deadline_unix_s - time.time()


def _number(
    sampling: engine_pb2.SamplingParams,
    name: str,
    default: float,
    least: float,
    most: float,
    *,
    exclude_least: bool = False,
) -> float:
    """A float field within [least, most], or (least, most]; `default` where it is unset."""
    if not sampling.HasField(name):  # type: ignore[arg-type]  # the stub wants a literal
        return default
    value: float = getattr(sampling, name)
    # A float32 in protobuf: 0.1 comes out as 0.10000000149011612, and no bound here is so close that it matters.
    is_low = value <= least if exclude_least else value < least
    if is_low or value > most or not math.isfinite(value):
        opening = "(" if exclude_least or least == -math.inf else "["
        closing = ")" if most == math.inf else "]"
        raise _invalid(f"sampling.{name}", f"must be a number in {opening}{least:g}, {most:g}{closing}, not {value:g}")
    return value


def _logit_bias(sampling: engine_pb2.SamplingParams, info: RunnerInfo) -> dict[int, float]:
    bias = dict(sampling.logit_bias)
    if len(bias) > MAX_LOGIT_BIAS_ENTRIES:
        raise _invalid("sampling.logit_bias", f"must have at most {MAX_LOGIT_BIAS_ENTRIES} entries")
    _check_token_ids("sampling.logit_bias", max(bias, default=0), info)
    for token_id, value in bias.items():
        if not -100 <= value <= 100:
            raise _invalid("sampling.logit_bias", f"must be in [-100, 100], not {value:g} (token {token_id})")
    return bias


def _check_token_ids(name: str, largest: int, info: RunnerInfo) -> None:
    if largest >= info.vocab_size:
        raise _invalid(name, f"holds token id {largest}: ids must be less than the vocabulary's {info.vocab_size}")


def _invalid(field: str, message: str) -> Refused:
    return Refused(Refusal(RefusalReason.INVALID_ARGUMENT, f"{field} {message}", field=field))
