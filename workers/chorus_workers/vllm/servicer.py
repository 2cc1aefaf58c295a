"""vLLM's token-level service, `vllm.grpc.engine.VllmEngine`, for gateways that speak it.

Statuses are those of EngineService; besides, an answer that its deadline ends is DEADLINE_EXCEEDED, and one that fails
alone is INTERNAL, since vLLM's finish reasons have neither.
"""

import asyncio
import datetime
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from importlib.metadata import version
from pathlib import Path

import grpc

from chorus_protos.v1 import engine_pb2
from chorus_protos.vllm import vllm_engine_pb2, vllm_engine_pb2_grpc
from chorus_vocabulary import ENDOFTEXT, START_OF_TEXT, STOP_TOKEN_IDS
from chorus_vocabulary.token_table import load_token_table
from chorus_workers import convert
from chorus_workers.config import WorkerConfig
from chorus_workers.engine.request import Refused
from chorus_workers.engine.stream import EngineDeadError
from chorus_workers.merged import merged
from chorus_workers.servicer import Context, TokenService, abort_refused, answer
from chorus_workers.stop_strings import until_stop
from chorus_workers.vllm.convert import MAX_ANSWERS, AnswerWriter, answer_id, requests_from_vllm, stop_strings
from chorus_workers.vllm.refusals import refusal_to_vllm

SERVICE_NAME = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"].full_name
_SERVER_TYPE = "vllm-grpc"
_FAILURES = {
    engine_pb2.FINISH_REASON_DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    engine_pb2.FINISH_REASON_ERROR: grpc.StatusCode.INTERNAL,
}


class VllmEngineServicer(vllm_engine_pb2_grpc.VllmEngineServicer):
    """A worker's methods as vLLM's. Methods that aren't here are UNIMPLEMENTED."""

    def __init__(self, worker: TokenService, config: WorkerConfig) -> None:
        self._worker = worker
        self._config = config
        self._started_at = time.monotonic()
        # Seconds since the epoch.
        self._received_at = 0.0

    async def Generate(
        self, request: vllm_engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[vllm_engine_pb2.GenerateResponse]:
        self._received_at = time.time()
        try:
            ours = await _converted(request)
        except Refused as refused:
            await abort_refused(context, convert.refusal_to_pb(refused.refusal).refusal)
        stops = [stop_strings(request.sampling_params) for _ in ours]
        writers = [AnswerWriter(request, index, stops[index]) for index in range(len(ours))]
        name_fields = partial(refusal_to_vllm, constraint=request.sampling_params.WhichOneof("constraint"))
        streams = [
            until_stop(answer(self._worker, one, context, name_fields), found)
            for one, found in zip(ours, stops, strict=True)
        ]
        async with aclosing(_in_turn(streams)) as responses:
            async for index, response in responses:
                if response.finish_reason in _FAILURES:
                    details = response.error_message or "the request's deadline passed"
                    await context.abort(_FAILURES[response.finish_reason], details)
                for message in writers[index].messages(response):
                    yield message

    async def Abort(self, request: vllm_engine_pb2.AbortRequest, context: Context) -> vllm_engine_pb2.AbortResponse:
        for request_id in request.request_ids:
            # Of however many answers: those that aren't there are no error.
            for index in range(MAX_ANSWERS):
                name = answer_id(request_id, index)
                await self._worker.abort(engine_pb2.AbortRequest(request_id=name))
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(
        self, request: vllm_engine_pb2.HealthCheckRequest, context: Context
    ) -> vllm_engine_pb2.HealthCheckResponse:
        try:
            await self._worker.check_health()
        except EngineDeadError:
            return vllm_engine_pb2.HealthCheckResponse(healthy=False, message="the worker's engine has failed")
        return vllm_engine_pb2.HealthCheckResponse(healthy=True, message="the engine is well")

    async def GetModelInfo(
        self, request: vllm_engine_pb2.GetModelInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetModelInfoResponse:
        info = await self._worker.model_info(engine_pb2.GetModelInfoRequest())
        # Gateways load their tokenizer from it; where it has none, as the demo model, they take what they were given.
        path = self._config.model if (Path(self._config.model) / "tokenizer.json").is_file() else ""
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=path,
            is_generation=True,
            max_context_length=info.max_model_len,
            vocab_size=info.vocab_size,
            served_model_name=info.model,
            tokenizer_path=path,
            model_type="gpt_oss",
            architectures=["GptOssForCausalLM"],
            eos_token_ids=STOP_TOKEN_IDS,
            pad_token_id=ENDOFTEXT,
            bos_token_id=START_OF_TEXT,
            max_req_input_len=info.max_model_len,
        )

    async def GetServerInfo(
        self, request: vllm_engine_pb2.GetServerInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetServerInfoResponse:
        load = await self._worker.load(engine_pb2.GetLoadRequest())
        return vllm_engine_pb2.GetServerInfoResponse(
            active_requests=load.num_running + load.num_waiting,
            last_receive_timestamp=self._received_at,
            uptime_seconds=time.monotonic() - self._started_at,
            server_type=_SERVER_TYPE,
            data_parallel_size=1,
            kv_cache_dtype=self._config.kv_cache_dtype,
            block_size=self._config.block_size,
            max_num_seqs=self._config.max_num_seqs,
        )

    async def GetLoads(
        self, request: vllm_engine_pb2.GetLoadsRequest, context: Context
    ) -> vllm_engine_pb2.GetLoadsResponse:
        load = await self._worker.load(engine_pb2.GetLoadRequest())
        info = await self._worker.model_info(engine_pb2.GetModelInfoRequest())
        num_tokens = info.num_kv_blocks * info.kv_block_size
        entry = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=load.num_running,
            num_waiting_reqs=load.num_waiting,
            num_total_reqs=load.num_running + load.num_waiting,
            num_used_tokens=round(load.kv_usage * num_tokens),
            max_total_num_tokens=num_tokens,
            token_usage=load.kv_usage,
            max_running_requests=self._config.max_num_seqs,
        )
        return vllm_engine_pb2.GetLoadsResponse(
            timestamp=datetime.datetime.now(datetime.UTC).isoformat(),
            version=version("chorus-serve"),
            dp_rank_count=1,
            loads=[entry],
        )


async def _converted(request: vllm_engine_pb2.GenerateRequest) -> list[engine_pb2.GenerateRequest]:
    """Errors: Refused. What takes long is loaded beside the event loop."""
    params = request.sampling_params
    if params.stop:
        await asyncio.to_thread(load_token_table)
    if params.HasField("structural_tag"):
        return await asyncio.to_thread(requests_from_vllm, request)
    return requests_from_vllm(request)


async def _in_turn(
    streams: Sequence[AsyncGenerator[engine_pb2.GenerateResponse, None]],
) -> AsyncGenerator[tuple[int, engine_pb2.GenerateResponse], None]:
    """The answers' responses with their indices. The first goes ahead, so that the others find its prompt's KV."""
    async with aclosing(streams[0]) as first:
        async for response in first:
            yield 0, response
            if len(streams) > 1:
                break
        if len(streams) > 1:
            async with aclosing(merged(streams)) as others:
                async for numbered in others:
                    yield numbered
