"""How a client reaches the server, and what it sends beside its requests."""

import json
from dataclasses import dataclass
from typing import Any, Final

import grpc

from chorus_protos.v1 import chat_pb2

# What may be sent twice, in gRPC's form: whole services, and methods. A response that is created may be kept before the
# connection is lost, and would be another one the second time; one that is deleted would not be found.
_TRIED_AGAIN: Final = [
    {"service": "chorus.v1.ChatService"},
    {"service": "chorus.v1.CompletionService"},
    *(
        {"service": "chorus.v1.ResponsesService", "method": method}
        for method in ("GetResponse", "StreamStoredResponse", "CancelResponse", "ListInputItems")
    ),
]
# gRPC itself goes no further.
_MOST_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Errors: ValueError, naming the field."""

    # Sent with every call. Without TLS whoever is on the way can read it.
    api_key: str | None = None
    # TLS, as of `grpc.ssl_channel_credentials()`. None: without.
    credentials: grpc.ChannelCredentials | None = None
    # Seconds in which an answer must be whole, unless a call says otherwise. None: no limit.
    timeout_s: float | None = None
    # How often gRPC tries a call, 1 to 5, while it ends as UNAVAILABLE before anything has come back: the server isn't
    # reached, the connection is lost, a stream is refused. A refused call that doesn't stream comes with headers, which
    # count as something. What creates or deletes a response is tried once.
    max_attempts: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= _MOST_ATTEMPTS:
            raise ValueError(f"max_attempts is {self.max_attempts}: it must be from 1 to {_MOST_ATTEMPTS}")

    def channel_options(self) -> list[tuple[str, Any]]:
        # An answer with log probabilities can be larger than gRPC's 4 MiB.
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1)]
        if self.max_attempts > 1:
            options.append(("grpc.service_config", json.dumps(_service_config(self.max_attempts))))
        return options

    def call_arguments(self, timeout_s: float | None, request_id: str | None) -> dict[str, Any]:
        """Keyword arguments of a stub's method."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        metadata = []
        if self.api_key is not None:
            metadata.append(("authorization", f"Bearer {self.api_key}"))
        if timeout_s is not None:
            # Serve keeps a call's deadline to itself; this reaches the engine.
            metadata.append(("x-request-timeout-s", str(timeout_s)))
        if request_id is not None:
            metadata.append(("x-request-id", request_id))
        return {"timeout": timeout_s, "metadata": tuple(metadata)}


def _service_config(max_attempts: int) -> dict[str, Any]:
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": "0.2s",
        "maxBackoff": "5s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {"methodConfig": [{"name": _TRIED_AGAIN, "retryPolicy": policy}]}


def tokenize_request(prompt: str | chat_pb2.ChatCompletionRequest) -> chat_pb2.TokenizeRequest:
    """Asks for the tokens of a text, or of what a chat request would send the model."""
    if isinstance(prompt, str):
        return chat_pb2.TokenizeRequest(prompt=prompt)
    return chat_pb2.TokenizeRequest(model=prompt.model, chat=prompt)
