"""Between vLLM's token-level protocol and ours. What ranges fields have is checked where ours are, in convert.py."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from chorus_protos.v1 import engine_pb2
from chorus_protos.vllm import vllm_engine_pb2
from chorus_vocabulary import STOP_TOKEN_IDS
from chorus_workers.stop_strings import StopStrings
from chorus_workers.vllm.guide import guide_from_vllm
from chorus_workers.vllm.refusals import SAMPLING, invalid

MAX_ANSWERS: Final = 128
MAX_STOPS: Final = 64
MAX_STOP_LENGTH: Final = 1024
_TEXT_ONLY: Final = "is not served: gpt-oss reads text alone"
_ONE_ENGINE: Final = "is not served: prefill and decode are on one worker here"
# Fields that are refused wherever they are set, and why.
_REFUSED_FIELDS: Final = {
    "text": "is not served: prompts are tokens here; send tokenized.input_ids",
    "mm_inputs": _TEXT_ONLY,
    "extra_mm_inputs": _TEXT_ONLY,
    "media_refs": _TEXT_ONLY,
    "kv_transfer_params": _ONE_ENGINE,
    "kv_transfer_params_json": _ONE_ENGINE,
}
_REFUSED_SAMPLING: Final = {
    "min_tokens": "is not served",
    "prompt_logprobs": "is not served",
    "truncate_prompt_tokens": "is not served: send as many tokens as the prompt shall have",
}
_FINISH_REASONS: Final = {
    engine_pb2.FINISH_REASON_STOP: "stop",
    engine_pb2.FINISH_REASON_LENGTH: "length",
    engine_pb2.FINISH_REASON_ABORT: "abort",
}


def requests_from_vllm(request: vllm_engine_pb2.GenerateRequest) -> list[engine_pb2.GenerateRequest]:
    """The same request in our protocol: one for each of its `n` answers, which draw with seeds that follow each other.
    Stop strings are no part of it: see `stop_strings`. The first request with a structural tag takes a second.

    Errors: Refused with INVALID_ARGUMENT, naming a field that would change the answer and isn't served.
    """
    first = _request(request)
    num_answers = max(1, request.sampling_params.n)
    if num_answers > MAX_ANSWERS:
        invalid(f"{SAMPLING}.n", f"must be at most {MAX_ANSWERS}")
    requests = [first]
    for index in range(1, num_answers):
        other = engine_pb2.GenerateRequest()
        other.CopyFrom(first)
        other.request_id = answer_id(first.request_id, index)
        if other.sampling.HasField("seed"):
            other.sampling.seed = (first.sampling.seed + index) % 2**64
        requests.append(other)
    return requests


def stop_strings(params: vllm_engine_pb2.SamplingParams) -> StopStrings:
    """What is to be found in one answer, by who hands it on."""
    return StopStrings(params.stop, skip_special_tokens=params.skip_special_tokens)


def answer_id(request_id: str, index: int) -> str:
    """What the request for one of several answers is called here."""
    return f"{request_id}/{index}" if index else request_id


def _request(request: vllm_engine_pb2.GenerateRequest) -> engine_pb2.GenerateRequest:
    """Of the first answer. The model's end tokens are stop tokens with us, unless the request ignores them."""
    _refuse(request, _REFUSED_FIELDS, "")
    if request.data_parallel_rank:
        invalid("data_parallel_rank", "must be 0: a worker has one rank")
    _check_known(request.tokenized, "tokenized.")
    params = request.sampling_params
    max_tokens = params.max_tokens if params.HasField("max_tokens") else 0
    if params.HasField("max_tokens") and not max_tokens:
        invalid(f"{SAMPLING}.max_tokens", "must be at least 1")
    return engine_pb2.GenerateRequest(
        request_id=request.request_id,
        prompt_token_ids=request.tokenized.input_ids,
        sampling=_sampling(params),
        max_tokens=max_tokens,
        guide=guide_from_vllm(request),
    )


class AnswerWriter:
    """Turns one answer's responses into vLLM's messages: chunks where a stream was asked for, and the whole answer."""

    def __init__(self, request: vllm_engine_pb2.GenerateRequest, index: int, stops: StopStrings) -> None:
        """`index`: which of the request's answers it is. `stops`: those that end it."""
        self._index = index
        self._stops = stops
        self._stop_token_ids = frozenset(request.sampling_params.stop_token_ids)
        self._num_prompt_tokens = len(request.tokenized.input_ids)
        self._streams = request.stream
        # 0: only the drawn tokens' own log probabilities, if any.
        self._num_top_logprobs = request.sampling_params.logprobs
        self._num_cached_tokens = 0
        self._token_ids: list[int] = []
        self._logprobs: list[engine_pb2.PositionLogprobs] = []

    def messages(self, response: engine_pb2.GenerateResponse) -> list[vllm_engine_pb2.GenerateResponse]:
        """What follows from a response that is neither a refusal nor a failure."""
        self._num_cached_tokens = self._num_cached_tokens or response.num_cached_tokens
        self._token_ids += response.token_ids
        written = []
        if self._streams and response.token_ids:
            written.append(vllm_engine_pb2.GenerateResponse(chunk=self._chunk(response)))
        elif not self._streams:
            self._logprobs += response.logprobs
        if response.finish_reason:
            written.append(vllm_engine_pb2.GenerateResponse(complete=self._complete(response.finish_reason)))
        return written

    def _chunk(self, response: engine_pb2.GenerateResponse) -> vllm_engine_pb2.GenerateStreamChunk:
        return vllm_engine_pb2.GenerateStreamChunk(
            token_ids=response.token_ids,
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=len(response.token_ids),
            cached_tokens=self._num_cached_tokens,
            output_logprobs=self._output_logprobs(response.logprobs),
            index=self._index,
        )

    def _complete(self, reason: engine_pb2.FinishReason.ValueType) -> vllm_engine_pb2.GenerateComplete:
        complete = vllm_engine_pb2.GenerateComplete(
            output_ids=self._token_ids,
            finish_reason=_FINISH_REASONS[reason],
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=len(self._token_ids),
            cached_tokens=self._num_cached_tokens,
            output_logprobs=self._output_logprobs(self._logprobs),
            index=self._index,
        )
        if self._stops.matched is not None:
            complete.matched_stop_str = self._stops.matched
        elif reason == engine_pb2.FINISH_REASON_STOP and self._token_ids[-1] in self._stop_token_ids:
            complete.matched_token_id = self._token_ids[-1]
        return complete

    def _output_logprobs(self, entries: Sequence[engine_pb2.PositionLogprobs]) -> vllm_engine_pb2.OutputLogProbs | None:
        if not entries:
            return None
        written = vllm_engine_pb2.OutputLogProbs(
            token_logprobs=[entry.sampled.logprob for entry in entries],
            token_ids=[entry.sampled.token_id for entry in entries],
        )
        if self._num_top_logprobs:
            for entry in entries:
                values, token_ids = [top.logprob for top in entry.top], [top.token_id for top in entry.top]
                written.top_logprobs.add(values=values, token_ids=token_ids)
        return written


def _sampling(params: vllm_engine_pb2.SamplingParams) -> engine_pb2.SamplingParams:
    _refuse(params, _REFUSED_SAMPLING, f"{SAMPLING}.")
    if params.logprobs < 0:
        invalid(f"{SAMPLING}.logprobs", "must not be negative: the whole vocabulary's are not served")
    if len(params.stop) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in params.stop):
        invalid(f"{SAMPLING}.stop", f"must have at most {MAX_STOPS} strings, of 1 to {MAX_STOP_LENGTH} characters")
    if min(params.logit_bias, default=0) < 0:
        invalid(f"{SAMPLING}.logit_bias", "holds a negative token id")
    return engine_pb2.SamplingParams(
        temperature=params.temperature if params.HasField("temperature") else None,
        top_p=params.top_p or None,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty or None,
        seed=params.seed % 2**64 if params.HasField("seed") else None,
        logit_bias=dict(params.logit_bias),
        stop_token_ids=[*params.stop_token_ids, *(() if params.ignore_eos else STOP_TOKEN_IDS)],
        logprobs=params.logprobs if params.HasField("logprobs") else None,
    )


def _refuse(message: Message, refused: dict[str, str], prefix: str) -> None:
    """Errors: Refused, for the first field that is set and among `refused`, or that our copy of the protocol lacks."""
    for descriptor, _ in message.ListFields():
        if descriptor.name in refused:
            invalid(prefix + descriptor.name, refused[descriptor.name])
    _check_known(message, prefix)


def _check_known(message: Message, prefix: str) -> None:
    """Errors: Refused. A field that a newer protocol has might change the answer, so it isn't skipped over."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        invalid(f"{prefix}{unknown[0].field_number}", "is not a field that is known here")
