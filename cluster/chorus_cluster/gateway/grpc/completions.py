"""The methods of `chorus.v1.CompletionService`, named as Ray Serve's gRPC ingress calls them, and their messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.choices import close_all, merged, together, total_of_prompts
from chorus_cluster.gateway.completion import Completion, collect
from chorus_cluster.gateway.grpc.call import Call, GrpcContext, GrpcMethods, Reading
from chorus_cluster.gateway.grpc.chat_models import (
    logprob_to_pb,
    output_format_from_pb,
    sampling_from_pb,
    usage_to_pb,
)
from chorus_cluster.gateway.grpc.service import Malformed
from chorus_cluster.gateway.request import DEFAULT_TEXT_TOKENS, TextRequest
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.gateway.validate import MAX_CHOICES
from chorus_protos.v1 import completion_pb2

_SERVICE = "/chorus.v1.CompletionService/"
_FINISH_REASONS: "dict[ev.FinishReason, completion_pb2.CompletionFinishReason.ValueType]" = {
    "stop": completion_pb2.COMPLETION_FINISH_REASON_STOP,
    "length": completion_pb2.COMPLETION_FINISH_REASON_LENGTH,
}


class GrpcCompletionMethods(GrpcMethods):
    async def CreateCompletion(
        self, request: completion_pb2.CompletionRequest | Malformed, grpc_context: GrpcContext
    ) -> completion_pb2.CompletionResponse:
        async def complete(call: Call) -> completion_pb2.CompletionResponse:
            asked, streams = await self._start_text(request, call)
            try:
                return _response(asked, await together(map(collect, streams)))
            finally:
                await close_all(streams)

        method = _SERVICE + "CreateCompletion"
        return await self._unary(method, grpc_context, completion_pb2.CompletionResponse, complete)

    async def StreamCompletion(
        self, request: completion_pb2.CompletionRequest | Malformed, grpc_context: GrpcContext
    ) -> AsyncIterator[completion_pb2.CompletionChunk]:
        with self._streaming(_SERVICE + "StreamCompletion", grpc_context) as call:
            asked, streams = await self._start_text(request, call)
            async with (
                Reading(streams, self._client_timeout_s) as reading,
                aclosing(_chunks(streams, asked.n)) as chunks,
            ):
                async for chunk in chunks:
                    reading.begin()
                    yield chunk
                    reading.end()

    async def _start_text(
        self, request: completion_pb2.CompletionRequest | Malformed, call: Call
    ) -> tuple[TextRequest, list[ChatStream]]:
        admitted, owner = self._admit(request, call)
        deadline = call.deadline_unix_s()
        asked = text_request_from_pb(admitted)
        return asked, await self._service.start_text(asked, deadline_unix_s=deadline, owner=owner)


def text_request_from_pb(pb: completion_pb2.CompletionRequest) -> TextRequest:
    """Converts a request. Errors: `InvalidRequest`, with the names of /v1/completions."""
    if len(pb.prompts) > MAX_CHOICES:
        raise InvalidRequest("prompt", f"holds {len(pb.prompts)} prompts; at most {MAX_CHOICES} answers are given")
    return TextRequest(
        model=pb.model,
        prompts=tuple(_prompt(prompt) for prompt in pb.prompts),
        echo=pb.echo,
        with_markup=pb.HasField("skip_special_tokens") and not pb.skip_special_tokens,
        output_format=output_format_from_pb(pb.output_format),
        max_tokens=pb.max_tokens if pb.HasField("max_tokens") else DEFAULT_TEXT_TOKENS,
        max_tokens_field="max_tokens",
        top_logprobs=pb.logprobs if pb.HasField("logprobs") else None,
        top_logprobs_field="logprobs",
        **sampling_from_pb(pb),
    )


def _prompt(prompt: completion_pb2.Prompt) -> str | Sequence[int]:
    return prompt.tokens.token_ids if prompt.HasField("tokens") else prompt.text


def _response(request: TextRequest, completions: Sequence[Completion]) -> completion_pb2.CompletionResponse:
    first = completions[0]
    return completion_pb2.CompletionResponse(
        id=first.id,
        created=first.created,
        model=first.model,
        choices=[
            completion_pb2.CompletionChoice(
                text=completion.content or "",
                finish_reason=_FINISH_REASONS[completion.finished.reason],
                logprobs=map(logprob_to_pb, completion.logprobs),
            )
            for completion in completions
        ],
        usage=usage_to_pb(total_of_prompts([completion.finished.usage for completion in completions], request.n)),
    )


async def _chunks(streams: Sequence[ChatStream], n: int) -> AsyncGenerator[completion_pb2.CompletionChunk, None]:
    first = streams[0]
    yield _chunk(first, ())
    async with aclosing(merged(streams)) as pieces:
        async for index, events in pieces:
            yield _chunk(first, _deltas(events, index))
    usage = usage_to_pb(total_of_prompts([stream.usage for stream in streams], n))
    yield _chunk(first, [completion_pb2.CompletionDelta(usage=usage)])


def _deltas(events: Iterable[ev.Event], choice: int) -> list[completion_pb2.CompletionDelta]:
    """Log probabilities follow the text that they belong to."""
    deltas = []
    for event in events:
        if isinstance(event, ev.Finished):
            reason = _FINISH_REASONS[event.reason]
            deltas.append(completion_pb2.CompletionDelta(finish_reason=reason, choice=choice))
        elif isinstance(event, ev.Answer):
            if event.text:
                deltas.append(completion_pb2.CompletionDelta(text=event.text, choice=choice))
            for entry in event.logprobs:
                deltas.append(completion_pb2.CompletionDelta(logprob=logprob_to_pb(entry), choice=choice))
    return deltas


def _chunk(stream: ChatStream, deltas: Iterable[completion_pb2.CompletionDelta]) -> completion_pb2.CompletionChunk:
    return completion_pb2.CompletionChunk(id=stream.id, created=stream.created, model=stream.model, deltas=deltas)
