"""The client for threads."""

from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorus_cluster.client.connection import Settings, tokenize_request
from chorus_cluster.client.failures import to_error
from chorus_protos.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    completion_pb2,
    completion_pb2_grpc,
    responses_pb2,
    responses_pb2_grpc,
)

ResponseT = TypeVar("ResponseT")


class ChorusClient:
    """One connection, which threads may share.

    Every call takes `timeout_s`, by when its answer must be whole, and `request_id`, its name in the server's log.
    Errors: those of `chorus_cluster.errors`.
    """

    def __init__(self, target: str, settings: Settings | None = None) -> None:
        """`target`: host:port, or another of gRPC's names. It connects with the first call."""
        self._settings = settings or Settings()
        options, credentials = self._settings.channel_options(), self._settings.credentials
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        self._chat = chat_pb2_grpc.ChatServiceStub(self._channel)
        self._completion = completion_pb2_grpc.CompletionServiceStub(self._channel)
        self._responses = responses_pb2_grpc.ResponsesServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def chat(
        self, request: chat_pb2.ChatCompletionRequest, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> chat_pb2.ChatCompletionResponse:
        return self._call(self._chat.CreateChatCompletion, request, timeout_s, request_id)

    def stream_chat(
        self, request: chat_pb2.ChatCompletionRequest, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> Generator[chat_pb2.ChatCompletionChunk, None, None]:
        """The answer as it is written. The call begins with the first chunk that is read; closing the generator ends
        it, and the request with it."""
        return self._stream(self._chat.StreamChatCompletion, request, timeout_s, request_id)

    def complete(
        self,
        request: completion_pb2.CompletionRequest,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> completion_pb2.CompletionResponse:
        """Goes on from raw prompts."""
        return self._call(self._completion.CreateCompletion, request, timeout_s, request_id)

    def stream_complete(
        self,
        request: completion_pb2.CompletionRequest,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generator[completion_pb2.CompletionChunk, None, None]:
        """As `stream_chat`."""
        return self._stream(self._completion.StreamCompletion, request, timeout_s, request_id)

    def create_response(
        self,
        request: responses_pb2.CreateResponseRequest,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> responses_pb2.Response:
        """The whole response; one in the background as it is at first."""
        return self._call(self._responses.CreateResponse, request, timeout_s, request_id)

    def stream_response(
        self,
        request: responses_pb2.CreateResponseRequest,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generator[responses_pb2.ResponseEvent, None, None]:
        """As `stream_chat`; but a response in the background goes on when the generator is closed."""
        return self._stream(self._responses.StreamResponse, request, timeout_s, request_id)

    def get_response(
        self, response_id: str, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> responses_pb2.Response:
        request = responses_pb2.GetResponseRequest(response_id=response_id)
        return self._call(self._responses.GetResponse, request, timeout_s, request_id)

    def stream_stored_response(
        self,
        response_id: str,
        *,
        starting_after: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generator[responses_pb2.ResponseEvent, None, None]:
        """The events of a response that `stream_response` made in the background, behind the one with this number."""
        request = responses_pb2.StreamStoredResponseRequest(response_id=response_id, starting_after=starting_after)
        return self._stream(self._responses.StreamStoredResponse, request, timeout_s, request_id)

    def delete_response(
        self, response_id: str, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> None:
        request = responses_pb2.DeleteResponseRequest(response_id=response_id)
        self._call(self._responses.DeleteResponse, request, timeout_s, request_id)

    def cancel_response(
        self, response_id: str, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> responses_pb2.Response:
        """Ends a response in the background; as it is then."""
        request = responses_pb2.CancelResponseRequest(response_id=response_id)
        return self._call(self._responses.CancelResponse, request, timeout_s, request_id)

    def list_input_items(
        self,
        request: responses_pb2.ListInputItemsRequest,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> responses_pb2.InputItemList:
        """A page of what the model was given for a response."""
        return self._call(self._responses.ListInputItems, request, timeout_s, request_id)

    def tokenize(
        self,
        prompt: str | chat_pb2.ChatCompletionRequest,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """Token ids of a text, or of what a chat request would send the model."""
        request = tokenize_request(prompt)
        return list(self._call(self._chat.Tokenize, request, timeout_s, request_id).token_ids)

    def detokenize(
        self, token_ids: Iterable[int], *, timeout_s: float | None = None, request_id: str | None = None
    ) -> str:
        """What token ids spell, special ones by their names."""
        request = chat_pb2.DetokenizeRequest(token_ids=token_ids)
        return self._call(self._chat.Detokenize, request, timeout_s, request_id).text

    def models(self, *, timeout_s: float | None = None, request_id: str | None = None) -> list[chat_pb2.Model]:
        request = chat_pb2.ListModelsRequest()
        return list(self._call(self._chat.ListModels, request, timeout_s, request_id).models)

    def is_healthy(self, *, timeout_s: float | None = None) -> bool:
        """Whether a worker answers."""
        response = self._call(self._health.Check, health_pb2.HealthCheckRequest(), timeout_s, None)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Ends what runs."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, method: Callable[..., ResponseT], request: Message, timeout_s: float | None, request_id: str | None
    ) -> ResponseT:
        try:
            return method(request, **self._settings.call_arguments(timeout_s, request_id))
        except grpc.RpcError as error:
            raise to_error(error) from error

    def _stream(
        self, method: Callable[..., Any], request: Message, timeout_s: float | None, request_id: str | None
    ) -> Generator[Any, None, None]:
        call = method(request, **self._settings.call_arguments(timeout_s, request_id))
        try:
            yield from call
        except grpc.RpcError as error:
            raise to_error(error) from error
        finally:
            call.cancel()
