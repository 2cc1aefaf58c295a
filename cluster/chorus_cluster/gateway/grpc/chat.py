"""The methods of `chorus.v1.ChatService`, named as Ray Serve's gRPC ingress calls them."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.choices import close_all, merged, together, total
from chorus_cluster.gateway.completion import collect
from chorus_cluster.gateway.grpc.call import Call, GrpcContext, GrpcMethods, Reading
from chorus_cluster.gateway.grpc.chat_models import add_events, completion_to_pb, request_from_pb, usage_to_pb
from chorus_cluster.gateway.grpc.service import Malformed
from chorus_cluster.gateway.stream import ChatStream
from chorus_cluster.gateway.tokens import detokenize, tokenize
from chorus_cluster.gateway.validate import check_model
from chorus_protos.v1 import chat_pb2, engine_pb2
from chorus_vocabulary.token_table import token_text

_SERVICE = "/chorus.v1.ChatService/"


class GrpcChatMethods(GrpcMethods):
    async def CreateChatCompletion(
        self, request: chat_pb2.ChatCompletionRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.ChatCompletionResponse:
        async def complete(call: Call) -> chat_pb2.ChatCompletionResponse:
            streams = await self._start_chat(request, call)
            try:
                return completion_to_pb(await together(map(collect, streams)))
            finally:
                await close_all(streams)

        method = _SERVICE + "CreateChatCompletion"
        return await self._unary(method, grpc_context, chat_pb2.ChatCompletionResponse, complete)

    async def StreamChatCompletion(
        self, request: chat_pb2.ChatCompletionRequest | Malformed, grpc_context: GrpcContext
    ) -> AsyncIterator[chat_pb2.ChatCompletionChunk]:
        with self._streaming(_SERVICE + "StreamChatCompletion", grpc_context) as call:
            streams = await self._start_chat(request, call)
            async with Reading(streams, self._client_timeout_s) as reading, aclosing(_chunks(streams)) as chunks:
                async for chunk in chunks:
                    reading.begin()
                    yield chunk
                    reading.end()

    async def ListModels(
        self, request: chat_pb2.ListModelsRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.ListModelsResponse:
        async def list_models(call: Call) -> chat_pb2.ListModelsResponse:
            self._admit(request, call)
            return chat_pb2.ListModelsResponse(models=[self._model(await self._service.models.get())])

        return await self._unary(_SERVICE + "ListModels", grpc_context, chat_pb2.ListModelsResponse, list_models)

    async def GetModel(
        self, request: chat_pb2.GetModelRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.Model:
        async def get_model(call: Call) -> chat_pb2.Model:
            asked, _ = self._admit(request, call)
            info = await self._service.models.get()
            check_model(asked.model, info)
            return self._model(info)

        return await self._unary(_SERVICE + "GetModel", grpc_context, chat_pb2.Model, get_model)

    async def Tokenize(
        self, request: chat_pb2.TokenizeRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.TokenizeResponse:
        async def encode(call: Call) -> chat_pb2.TokenizeResponse:
            asked, _ = self._admit(request, call)
            if asked.WhichOneof("input") is None:
                raise InvalidRequest("prompt", "is required, or chat")
            prompt = request_from_pb(asked.chat) if asked.HasField("chat") else asked.prompt
            done = await tokenize(self._service, asked.model, prompt)
            return chat_pb2.TokenizeResponse(
                token_ids=done.token_ids,
                max_model_len=done.max_model_len,
                token_strs=map(token_text, done.token_ids) if asked.return_token_strs else (),
            )

        return await self._unary(_SERVICE + "Tokenize", grpc_context, chat_pb2.TokenizeResponse, encode)

    async def Detokenize(
        self, request: chat_pb2.DetokenizeRequest | Malformed, grpc_context: GrpcContext
    ) -> chat_pb2.DetokenizeResponse:
        async def decode(call: Call) -> chat_pb2.DetokenizeResponse:
            asked, _ = self._admit(request, call)
            return chat_pb2.DetokenizeResponse(text=await detokenize(self._service, asked.model, asked.token_ids))

        return await self._unary(_SERVICE + "Detokenize", grpc_context, chat_pb2.DetokenizeResponse, decode)

    async def _start_chat(self, request: chat_pb2.ChatCompletionRequest | Malformed, call: Call) -> list[ChatStream]:
        asked, owner = self._admit(request, call)
        deadline = call.deadline_unix_s()
        return await self._service.start_all(request_from_pb(asked), deadline_unix_s=deadline, owner=owner)

    def _model(self, info: engine_pb2.ModelInfo) -> chat_pb2.Model:
        return chat_pb2.Model(
            id=info.model, created=self._service.started_at, owned_by="chorus", max_model_len=info.max_model_len
        )


async def _chunks(streams: Sequence[ChatStream]) -> AsyncGenerator[chat_pb2.ChatCompletionChunk, None]:
    first, are_several = streams[0], len(streams) > 1
    yield _chunk(first)
    async with aclosing(merged(streams)) as pieces:
        async for index, events in pieces:
            chunk = _chunk(first)
            add_events(chunk, events, index if are_several else None)
            yield chunk
    if are_several:
        chunk = _chunk(first)
        chunk.deltas.add(usage=usage_to_pb(total([stream.usage for stream in streams])))
        yield chunk


def _chunk(stream: ChatStream) -> chat_pb2.ChatCompletionChunk:
    """Without deltas."""
    return chat_pb2.ChatCompletionChunk(id=stream.id, created=stream.created, model=stream.model)
